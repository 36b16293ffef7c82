/* What every C file of the native module needs: the export mark and the error codes. */
#ifndef LICHEN_H
#define LICHEN_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define LICHEN_API __declspec(dllexport)
#else
#define LICHEN_API __attribute__((visibility("default")))
#endif

/* A negative return value is an error. */
enum {
    LICHEN_OK = 0,
    LICHEN_ERROR_ARGUMENT = -1, /* arguments that contradict each other */
    LICHEN_ERROR_MEMORY = -2,   /* an allocation failed */
    LICHEN_ERROR_THREAD = -3,   /* the system refused a thread */
};

#endif
