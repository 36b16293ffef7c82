/* Kernels of every operation but the inner loops of convolutions, in plain C for the compiler to
 * vectorise. Each conv_*.c includes this file below its own `convolve_bytes` and `convolve_words`,
 * so that it is compiled once per instruction set.
 *
 * Element-wise operations work on contiguous runs. Where tensors of both layouts meet, squares of
 * 32 channels by 32 pixels are transposed on the way. */

#include <string.h>

#include "transpose.h"

#define BLOCK 1024 /* elements of a square that is transposed */

/* Saturation and rounding: the same as lichen/program/arithmetic.py. */
static inline int32_t clip(int32_t x, int32_t low, int32_t high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

static inline int32_t shift_left(int32_t x, int32_t shift) {
    return (int32_t)((uint32_t)x << shift);
}

static inline int32_t add(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }

static inline int32_t half_minus_1(int64_t shift) {
    return shift == 0 ? 0 : (int32_t)((UINT32_C(1) << (shift - 1)) - 1);
}

/* `half` is half_minus_1(shift), `odd` 0 when the shift is 0 and otherwise 1. */
static inline int32_t round_shift(int32_t x, int32_t shift, int32_t half, int32_t odd) {
    return add(add(x, half), (x >> shift) & odd) >> shift;
}

/* ---- rows, runs and blocks of elements ---- */

typedef struct {
    uint8_t *base; /* column 0, channel 0 */
    int64_t stride_x, stride_c, storage, bytes;
} row_view;

static inline row_view view(const lichen_run *run, int64_t tensor, int64_t y) {
    const lichen_tensor *t = &run->tensors[tensor];
    row_view v = {NULL, t->stride_x, t->stride_c, t->storage, storage_bytes(t->storage)};
    if (t->external >= 0) {
        const lichen_external *e = &run->external[t->external];
        v.stride_x = e->stride_x;
        v.stride_c = e->stride_c;
        v.base = e->data + y * e->stride_y;
    } else {
        v.base = run->arena + t->offset + (y % t->rows) * t->stride_y;
    }
    return v;
}

#define FOR(i, n) for (int64_t i = 0; i < (n); i++)

static void load_run(int64_t storage, const uint8_t *restrict p, int32_t *restrict t, int64_t n) {
    const int16_t *s16 = (const int16_t *)(const void *)p;
    if (storage == STORE_U8) FOR(i, n) t[i] = p[i];
    else if (storage == STORE_S8X) FOR(i, n) t[i] = p[i] - 128;
    else FOR(i, n) t[i] = s16[i];
}

/* Values must lie in the type's range. */
static void store_run(int64_t storage, uint8_t *restrict p, const int32_t *restrict t, int64_t n) {
    int16_t *s16 = (int16_t *)(void *)p;
    if (storage == STORE_U8) FOR(i, n) p[i] = (uint8_t)t[i];
    else if (storage == STORE_S8X) FOR(i, n) p[i] = (uint8_t)(t[i] + 128);
    else FOR(i, n) s16[i] = (int16_t)t[i];
}

/* One of the tensors of an element-wise operation. A byte b holds (int8)(b ^ flip) + offset, which
 * covers u8, s8 and s8 + 128, so that kernels need to know only the size of an element. */
typedef struct {
    row_view v;
    uint8_t flip;
    int32_t offset;
    uint8_t *run;       /* the current block's elements */
    int64_t outer_step; /* bytes between its runs */
    uint8_t block[BLOCK * 2];
} operand;

static inline void open_operand(operand *o, const lichen_run *run, int64_t tensor, int64_t y) {
    o->v = view(run, tensor, y);
    o->flip = o->v.storage == STORE_S8 ? 0 : 128;
    o->offset = o->v.storage == STORE_U8 ? 128 : 0;
}

static inline int32_t get(const uint8_t *p, int64_t i, const int bytes, uint8_t flip,
                          int32_t offset) {
    return bytes == 1 ? (int8_t)(p[i] ^ flip) + offset : ((const int16_t *)(const void *)p)[i];
}

static inline void put(uint8_t *p, int64_t i, const int bytes, uint8_t flip, int32_t offset,
                       int32_t value) {
    if (bytes == 1) p[i] = (uint8_t)((uint8_t)(value - offset) ^ flip);
    else ((int16_t *)(void *)p)[i] = (int16_t)value;
}

/* Columns x .. x + nx - 1 of channels c .. c + nc - 1, as `outer` runs of `inner` elements. Runs go
 * along the channels, or along the row where all tensors are planar. */
typedef struct {
    int64_t x, nx, c, nc, planar, inner, outer;
} block;

static inline int64_t contiguous(const operand *o, int64_t planar) {
    return (planar ? o->v.stride_x : o->v.stride_c) == o->v.bytes;
}

/* Point an operand at a block; transpose an input that lies the other way. */
static inline void enter(operand *o, const block *k, int64_t input) {
    const row_view *v = &o->v;
    uint8_t *at = v->base + k->x * v->stride_x + k->c * v->stride_c;
    const int64_t along = k->planar ? v->stride_x : v->stride_c;
    if (contiguous(o, k->planar)) {
        o->run = at;
        o->outer_step = k->planar ? v->stride_c : v->stride_x;
        return;
    }
    o->run = o->block;
    o->outer_step = k->inner * v->bytes;
    if (input) transpose(o->block, o->outer_step, at, along, k->inner, k->outer, v->bytes);
}

/* Put a block where it belongs if `enter` gave the output a temporary one. */
static inline void leave(operand *o, const block *k) {
    const row_view *v = &o->v;
    if (o->run != o->block) return;
    uint8_t *at = v->base + k->x * v->stride_x + k->c * v->stride_c;
    const int64_t along = k->planar ? v->stride_x : v->stride_c;
    transpose(at, along, o->block, o->outer_step, k->outer, k->inner, v->bytes);
}

typedef struct {
    const lichen_op *op;
    const int32_t *multipliers; /* of the run's first channel */
    int32_t shift, half, odd, low, high;
} arguments;

/* Do one run of `n` elements; `b` is `a` for operations with one input. */
typedef void run_kernel(const arguments *g, const operand *a, const operand *b, const operand *out,
                        const uint8_t *pa, const uint8_t *pb, uint8_t *po, int64_t n);

/* Cut columns x0 .. x1 - 1 of row y into blocks and runs. kernels: [planar][bytes of a, b, output].
 * multipliers: one for each channel, or NULL. */
static void each_run(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                     run_kernel *const kernels[2][2][2][2], const int32_t *multipliers) {
    operand a, b, out;
    open_operand(&a, run, op->a, y);
    open_operand(&b, run, op->b, y);
    open_operand(&out, run, op->output, y);
    const int64_t channels = run->tensors[op->output].channels;
    const int64_t last = contiguous(&a, 0) && contiguous(&b, 0) && contiguous(&out, 0);
    const int64_t rows = contiguous(&a, 1) && contiguous(&b, 1) && contiguous(&out, 1);
    /* Few channels make short runs. */
    const int64_t planar = !last && (rows || channels < 8);
    const int64_t full_c = last || rows || channels < 32 ? channels : 32;
    const int64_t full_x = last || rows ? x1 - x0 : BLOCK / full_c;
    run_kernel *work = kernels[planar][a.v.bytes - 1][b.v.bytes - 1][out.v.bytes - 1];
    const int32_t s = (int32_t)op->shift;
    arguments g = {op, NULL, s, half_minus_1(s), s > 0, (int32_t)op->low, (int32_t)op->high};
    block k = {.planar = planar};
    for (k.c = 0; k.c < channels; k.c += full_c) {
        k.nc = full_c < channels - k.c ? full_c : channels - k.c;
        for (k.x = x0; k.x < x1; k.x += full_x) {
            k.nx = full_x < x1 - k.x ? full_x : x1 - k.x;
            k.inner = planar ? k.nx : k.nc;
            k.outer = planar ? k.nc : k.nx;
            enter(&a, &k, 1);
            enter(&b, &k, 1);
            enter(&out, &k, 0);
            int64_t n = k.inner, count = k.outer;
            /* Runs that follow one another without a gap are one run. */
            if (multipliers == NULL && a.outer_step == n * a.v.bytes &&
                b.outer_step == n * b.v.bytes && out.outer_step == n * out.v.bytes)
                n *= count, count = 1;
            FOR(i, count) {
                if (multipliers != NULL) g.multipliers = multipliers + k.c + (planar ? i : 0);
                work(&g, &a, &b, &out, a.run + i * a.outer_step, b.run + i * b.outer_step,
                     out.run + i * out.outer_step, n);
            }
            leave(&out, &k);
        }
    }
}

/* Instances of an inline run kernel for elements of one and two bytes. */
#define INSTANCE(name, A, B, O)                                                                    \
    static void name##_##A##B##O(const arguments *g, const operand *a, const operand *b,           \
                                 const operand *out, const uint8_t *pa, const uint8_t *pb,         \
                                 uint8_t *po, int64_t n) {                                         \
        name(g, a, b, out, pa, pb, po, n, A, B, O);                                                \
    }
#define INSTANCES_1(name)                                                                          \
    INSTANCE(name, 1, 1, 1) INSTANCE(name, 1, 1, 2) INSTANCE(name, 2, 2, 1) INSTANCE(name, 2, 2, 2)
#define INSTANCES_2(name)                                                                          \
    INSTANCES_1(name)                                                                              \
    INSTANCE(name, 1, 2, 1) INSTANCE(name, 1, 2, 2) INSTANCE(name, 2, 1, 1) INSTANCE(name, 2, 1, 2)
#define TABLE_1(name) {{{name##_111, name##_112}, {0}}, {{0}, {name##_221, name##_222}}}
#define TABLE_2(name)                                                                              \
    {{{name##_111, name##_112}, {name##_121, name##_122}},                                         \
     {{name##_211, name##_212}, {name##_221, name##_222}}}
#define RUN_ARGUMENTS                                                                              \
    const arguments *g, const operand *a, const operand *b, const operand *out,                    \
        const uint8_t *restrict pa, const uint8_t *restrict pb, uint8_t *restrict po, int64_t n,   \
        const int ba, const int bb, const int bo
#define GET_A(i) get(pa, i, ba, flip_a, offset_a)
#define PUT(i, value) put(po, i, bo, flip_out, offset_out, clip(value, low, high))
#define RUN_CONSTANTS                                                                              \
    const uint8_t flip_a = a->flip, flip_out = out->flip;                                          \
    const int32_t offset_a = a->offset, offset_out = out->offset, low = g->low, high = g->high;    \
    (void)b, (void)pb, (void)bb

static inline __attribute__((always_inline)) void add_run(RUN_ARGUMENTS) {
    RUN_CONSTANTS;
    const uint8_t flip_b = b->flip;
    const int32_t offset_b = b->offset, s = g->shift, half = g->half, odd = g->odd;
    const int32_t sa = (int32_t)g->op->shift_a, sb = (int32_t)g->op->shift_b;
    const int32_t sign = g->op->subtract ? -1 : 0; /* (v ^ -1) - -1 is -v */
    FOR(i, n) {
        const int32_t vb = shift_left(get(pb, i, bb, flip_b, offset_b), sb);
        const int32_t sum = add(shift_left(GET_A(i), sa), (vb ^ sign) - sign);
        PUT(i, round_shift(sum, s, half, odd));
    }
}
INSTANCES_2(add_run)

static void row_add(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                    uint8_t *scratch) {
    static run_kernel *const kernels[2][2][2][2] = {TABLE_2(add_run), TABLE_2(add_run)};
    (void)scratch;
    each_run(run, op, y, x0, x1, kernels, NULL);
}

static inline __attribute__((always_inline)) void scale_run(RUN_ARGUMENTS) {
    RUN_CONSTANTS;
    const int32_t *restrict m = g->multipliers;
    const int32_t s = g->shift, half = g->half, odd = g->odd;
    FOR(i, n) PUT(i, round_shift(GET_A(i) * m[i], s, half, odd));
}
INSTANCES_1(scale_run)

static inline __attribute__((always_inline)) void scale_planar_run(RUN_ARGUMENTS) {
    RUN_CONSTANTS;
    const int32_t m = g->multipliers[0], s = g->shift, half = g->half, odd = g->odd;
    FOR(i, n) PUT(i, round_shift(GET_A(i) * m, s, half, odd));
}
INSTANCES_1(scale_planar_run)

static void row_scale(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                      uint8_t *scratch) {
    static run_kernel *const kernels[2][2][2][2] = {TABLE_1(scale_run), TABLE_1(scale_planar_run)};
    (void)scratch;
    each_run(run, op, y, x0, x1, kernels, op->vector >= 0 ? run->vectors[op->vector] : op->constants);
}

/* Clamp, and with the type's range a plain copy between layouts. */
static inline __attribute__((always_inline)) void clamp_run(RUN_ARGUMENTS) {
    RUN_CONSTANTS;
    FOR(i, n) PUT(i, GET_A(i));
}
INSTANCES_1(clamp_run)

static void row_clamp(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                      uint8_t *scratch) {
    static run_kernel *const kernels[2][2][2][2] = {TABLE_1(clamp_run), TABLE_1(clamp_run)};
    (void)scratch;
    each_run(run, op, y, x0, x1, kernels, NULL);
}

/* The table has 65,536 bytes, indexed by value + 32768. */
static inline __attribute__((always_inline)) void table_run(RUN_ARGUMENTS) {
    RUN_CONSTANTS;
    const uint8_t *restrict table = (const uint8_t *)g->op->table + 32768;
    FOR(i, n) PUT(i, table[GET_A(i)]);
}
INSTANCES_1(table_run)

static void row_table(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                      uint8_t *scratch) {
    static run_kernel *const kernels[2][2][2][2] = {TABLE_1(table_run), TABLE_1(table_run)};
    (void)scratch;
    each_run(run, op, y, x0, x1, kernels, NULL);
}

/* ---- runs: pixel shuffles between channel-last and planar ---- */

static inline int32_t load_element(int64_t storage, const uint8_t *p) {
    int16_t s16;
    switch (storage) {
    case STORE_U8: return *p;
    case STORE_S8: return *(const int8_t *)p;
    default: memcpy(&s16, p, 2); return s16;
    }
}

static inline void store_element(int64_t storage, uint8_t *p, int32_t value) {
    int16_t s16 = (int16_t)value;
    if (storage == STORE_S16) memcpy(p, &s16, 2);
    else *p = (uint8_t)value;
}

/* Copy `count` runs of `run` elements, `from` and `to` advancing by their steps. */
typedef struct {
    const uint8_t *from;
    uint8_t *to;
    int64_t from_step, to_step, count;
} runs;

static inline void runs_same(runs r, const int64_t bytes, const uint8_t flip) {
    for (; r.count > 0; r.count--, r.from += r.from_step, r.to += r.to_step) {
        if (flip == 0) memcpy(r.to, r.from, (size_t)bytes);
        else FOR(i, bytes) r.to[i] = r.from[i] ^ flip;
    }
}

static inline void runs_convert(runs r, const int64_t run, const int64_t from, const int64_t to) {
    for (; r.count > 0; r.count--, r.from += r.from_step, r.to += r.to_step)
        FOR(i, run) store_element(to, r.to + i * storage_bytes(to),
                                  load_element(from, r.from + i * storage_bytes(from)));
}

#define FOR_CONSTANT_RUN(run, call)                                                                \
    switch (run) {                                                                                 \
    case 1: call(1); break;                                                                        \
    case 2: call(2); break;                                                                        \
    case 4: call(4); break;                                                                        \
    case 8: call(8); break;                                                                        \
    case 16: call(16); break;                                                                      \
    default: call(run);                                                                            \
    }

static void copy_runs(runs r, int64_t run, int64_t from, int64_t to) {
#define SAME_1(n) runs_same(r, n, 0)
#define SAME_2(n) runs_same(r, 2 * (n), 0)
#define FLIP(n) runs_same(r, n, 128)
#define U8_S16(n) runs_convert(r, n, STORE_U8, STORE_S16)
#define S8_S16(n) runs_convert(r, n, STORE_S8, STORE_S16)
#define S16_U8(n) runs_convert(r, n, STORE_S16, STORE_U8)
#define S16_S8(n) runs_convert(r, n, STORE_S16, STORE_S8)
    if (from == to && from == STORE_S16) FOR_CONSTANT_RUN(run, SAME_2)
    else if (from == to) FOR_CONSTANT_RUN(run, SAME_1)
    else if (from != STORE_S16 && to != STORE_S16) FOR_CONSTANT_RUN(run, FLIP)
    else if (from == STORE_U8) FOR_CONSTANT_RUN(run, U8_S16)
    else if (from == STORE_S8) FOR_CONSTANT_RUN(run, S8_S16)
    else if (to == STORE_U8) FOR_CONSTANT_RUN(run, S16_U8)
    else FOR_CONSTANT_RUN(run, S16_S8)
}

/* A unit is an input row, hence `factor` output rows. */
static void row_shuffle(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0,
                        int64_t x1, uint8_t *scratch) {
    (void)scratch;
    row_view a = view(run, op->a, y);
    const int64_t r = op->factor, channels = run->tensors[op->output].channels;
    FOR(dy, r) {
        row_view out = view(run, op->output, y * r + dy);
        if (op->permuted) {
            const int64_t bytes = r * out.stride_x;
            const uint8_t *from = a.base + x0 * a.stride_x + dy * bytes;
            uint8_t *to = out.base + x0 * bytes;
            for (int64_t x = x0; x < x1; x++, from += a.stride_x, to += bytes)
                memcpy(to, from, (size_t)bytes);
        } else if (out.stride_x == out.bytes) {
            FOR(c, channels) {
                runs k = {a.base + x0 * a.stride_x + (c * r + dy) * r * a.stride_c,
                          out.base + x0 * r * out.bytes + c * out.stride_c, a.stride_x,
                          r * out.bytes, x1 - x0};
                copy_runs(k, r, a.storage, out.storage);
            }
        } else {
            for (int64_t x = x0; x < x1; x++) FOR(dx, r) {
                runs k = {a.base + x * a.stride_x + (dy * r + dx) * a.stride_c,
                          out.base + (x * r + dx) * out.stride_x, r * r * a.stride_c, out.stride_c,
                          channels};
                copy_runs(k, 1, a.storage, out.storage);
            }
        }
    }
}

static void row_unshuffle(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0,
                          int64_t x1, uint8_t *scratch) {
    (void)scratch;
    row_view out = view(run, op->output, y);
    const int64_t r = op->factor, channels = run->tensors[op->a].channels;
    FOR(dy, r) {
        row_view a = view(run, op->a, y * r + dy);
        if (a.stride_x == a.bytes && out.stride_c == out.bytes) {
            FOR(c, channels) {
                runs k = {a.base + x0 * r * a.bytes + c * a.stride_c,
                          out.base + x0 * out.stride_x + (c * r + dy) * r * out.stride_c,
                          r * a.bytes, out.stride_x, x1 - x0};
                copy_runs(k, r, a.storage, out.storage);
            }
        } else {
            for (int64_t x = x0; x < x1; x++) FOR(dx, r) {
                runs k = {a.base + (x * r + dx) * a.stride_x,
                          out.base + x * out.stride_x + (dy * r + dx) * out.stride_c, a.stride_c,
                          r * r * out.stride_c, channels};
                copy_runs(k, 1, a.storage, out.storage);
            }
        }
    }
}
