/* LD_PRELOAD: make the n-th allocation, or start of a thread, of the native module fail.
 * `fail_native_at(n)` arms it; n < 0 disarms. Calls from elsewhere are not counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);

static atomic_int left = -1, failed = 0;

void fail_native_at(int n) {
    atomic_store(&failed, 0);
    atomic_store(&left, n);
}

int fail_native_count(void) { return atomic_load(&failed); }

static int fails(void *caller) {
    Dl_info info;
    if (atomic_load(&left) < 0) return 0;
    if (!dladdr(caller, &info) || !info.dli_fname || !strstr(info.dli_fname, "_native")) return 0;
    if (atomic_fetch_sub(&left, 1) != 0) return 0;
    atomic_fetch_add(&failed, 1);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*start)(void *),
                   void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (fails(__builtin_return_address(0))) return EAGAIN;
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return real(thread, attributes, start, argument);
}
