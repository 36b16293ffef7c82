/* What runs a Program: a plan made in Python (lichen/native/plan.py mirrors these structs field by
 * field), the arithmetic and the table of kernels that each instruction set fills. */
#ifndef LICHEN_PLAN_H
#define LICHEN_PLAN_H

#include "lichen.h"

/* How an element is stored. S8X: value + 128 in a byte, so that kernels multiply u8 by s8. */
enum { STORE_U8, STORE_S8X, STORE_S16, STORE_S8, STORE_S32 };

static inline int64_t storage_bytes(int64_t storage) {
    return storage == STORE_S32 ? 4 : storage == STORE_S16 ? 2 : 1;
}

/* A tensor, or some channels of one. Element (c, y, x) lies at
 * base + offset + (y % rows) * stride_y + x * stride_x + c * stride_c, all in bytes. */
typedef struct {
    int64_t external;   /* index into the run's arrays, or -1: base is the arena */
    int64_t offset;     /* of row 0, pixel 0, channel 0 */
    int64_t pad_offset; /* of a row that holds zeros, for rows outside the picture */
    int64_t stride_y, stride_x, stride_c;
    int64_t rows; /* of the ring */
    int64_t storage;
    int64_t channels, height, width;
} lichen_tensor;

/* An array of the caller: (C, H, W), pixels of a row or channels contiguous. Strides in bytes. */
typedef struct {
    uint8_t *data;
    int64_t stride_c, stride_y, stride_x;
} lichen_external;

enum {
    KIND_CONV,
    KIND_DEPTHWISE,
    KIND_COPY,
    KIND_SHUFFLE,
    KIND_UNSHUFFLE,
    KIND_ADD,
    KIND_SCALE,
    KIND_CLAMP,
    KIND_TABLE,
    KIND_GDN,
    KIND_COUNT,
};

/* Exponents of n in a GDN: -1/2, 1/2, -1, 1. */
enum { GDN_FORWARD, GDN_INVERSE, SIMPLE_FORWARD, SIMPLE_INVERSE };

typedef struct {
    int64_t kind;
    int64_t a, b, output; /* tensors */
    int64_t width;        /* columns of one unit of work (a row) */
    int64_t low, high;    /* saturation */
    int64_t stride, top, left, kernel_h, kernel_w;
    int64_t groups, group_inputs, group_outputs;
    int64_t shift_a, shift_b, shift; /* `shift_a` is square_shift of GDN */
    int64_t subtract;
    int64_t factor;   /* of PixelShuffle */
    int64_t permuted; /* the shuffle's input has its channels as (dy, dx, c) */
    int64_t vector;   /* multipliers given at run time: their index, or -1 */
    int64_t mode;     /* of GDN */
    const void *weight;
    const int32_t *windows;   /* CONV: per 16 outputs the taps that are not all zero, as rows and
                                 columns from, to; what subpixel convolutions leave out */
    const int32_t *constants; /* CONV: per 16 outputs bias, shift, half - 1, odd; SCALE: multipliers */
    const void *table;
} lichen_op;

typedef struct {
    const lichen_op *ops;
    const lichen_tensor *tensors;
    const lichen_external *external;
    const int32_t *const *vectors;
    uint8_t *arena;
    int64_t *nanoseconds; /* spent in each step; or NULL */
} lichen_run;

/* One row of output pixels of a convolution, all output channels of a group. */
typedef struct {
    const uint8_t *const *rows; /* kernel_h pointers to the first tap of output pixel 0 */
    int64_t kernel_h, kernel_w;
    int64_t segments, segment_step; /* a kernel row is `segments` runs, this many bytes apart */
    int64_t length;                 /* of a run, in units of 4 bytes */
    int64_t pixel_step;             /* bytes from one output pixel's window to the next */
    const uint8_t *weight;          /* [outputs / 16][kernel_h * segments * length][16][4 bytes] */
    const int32_t *windows;         /* [outputs / 16][row from, to, column from, to] */
    const int32_t *constants;       /* [outputs / 16][bias, shift, half - 1, odd][16] */
    uint8_t *output;
    int64_t output_step; /* bytes from pixel to pixel */
    int64_t outputs;
    int64_t storage; /* STORE_S32: the accumulator as it is */
    int32_t low, high;
} conv_row;

/* The part of the kernel that `count` blocks of 16 outputs need: rows, segments of a row, and the
 * run of each segment in units of 4 bytes. */
typedef struct {
    int64_t row0, row1, segment0, segment1, start, length;
} window;

static inline window window_of(const conv_row *k, int64_t block, int64_t count) {
    const int32_t *w = k->windows + block * 4;
    int64_t row0 = w[0], row1 = w[1], column0 = w[2], column1 = w[3];
    for (int64_t i = 1; i < count; i++) {
        w += 4;
        row0 = w[0] < row0 ? w[0] : row0;
        row1 = w[1] > row1 ? w[1] : row1;
        column0 = w[2] < column0 ? w[2] : column0;
        column1 = w[3] > column1 ? w[3] : column1;
    }
    if (k->segments > 1) return (window){row0, row1, column0, column1, 0, k->length};
    const int64_t tap = k->length / k->kernel_w;
    return (window){row0, row1, 0, 1, column0 * tap, (column1 - column0) * tap};
}

/* Do units of work: row y of an operation, columns x0 .. x1 - 1. `scratch` is the thread's own. */
typedef void kernel(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                    uint8_t *scratch);

typedef struct {
    const char *name;
    int (*supported)(void);
    int64_t bytes; /* 0: everything is stored in 16 bits. 1: u8 and s8 in bytes, multiplied as
                      unsigned. 2: the same, multiplied as signed, less 128 */
    kernel *kernels[KIND_COUNT];
    int64_t (*peak)(int64_t rounds); /* multiply-accumulates done from registers */
} lichen_isa;

extern const lichen_isa lichen_isa_plain;
#if defined(__x86_64__)
extern const lichen_isa lichen_isa_avx2, lichen_isa_avx512vnni;
#elif defined(__aarch64__)
extern const lichen_isa lichen_isa_neon;
/* Before version 16, Clang has the intrinsics only where the whole file is for such processors. */
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD)
#define LICHEN_DOTPROD 1
extern const lichen_isa lichen_isa_dotprod;
#endif
#endif

#define GDN_PIXELS 32 /* handled at a time, see lichen_scratch_bytes */
#define KERNEL_ROWS_MAX 255

#endif
