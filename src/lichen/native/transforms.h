/* Convolutions and GDN over a row: addresses and loops around `convolve_bytes` (u8 by s8) and
 * `convolve_words` (s16 by s16) of the including conv_*.c. Follows rows.h. */

static void row_conv(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                     uint8_t *scratch) {
    (void)scratch;
    const lichen_tensor *in = &run->tensors[op->a];
    row_view a = view(run, op->a, 0), out = view(run, op->output, y);
    const uint8_t *rows[KERNEL_ROWS_MAX];
    const int64_t words = in->storage == STORE_S16;
    /* Channels are packed in fours; a kernel row is one run where nothing lies between pixels. */
    const int64_t channels = (op->group_inputs + 3) / 4 * 4, bytes = channels * a.bytes;
    const int64_t joined = a.stride_x == bytes;
    conv_row k = {
        .rows = rows,
        .kernel_h = op->kernel_h,
        .kernel_w = op->kernel_w,
        .segments = joined ? 1 : op->kernel_w,
        .segment_step = a.stride_x,
        .length = (joined ? op->kernel_w : 1) * bytes / 4,
        .pixel_step = op->stride * a.stride_x,
        .output_step = out.stride_x,
        .outputs = op->group_outputs,
        .storage = out.storage,
        .low = (int32_t)op->low,
        .high = (int32_t)op->high,
    };
    const int64_t blocks = (op->group_outputs + 15) / 16;
    const int64_t group_weight = blocks * 16 * op->kernel_h * op->kernel_w * bytes;
    FOR(g, op->groups) {
        FOR(i, op->kernel_h) {
            int64_t row = y * op->stride - op->top + i;
            int64_t at = row < 0 || row >= in->height ? in->pad_offset
                                                       : in->offset + row % in->rows * in->stride_y;
            rows[i] = run->arena + at - op->left * a.stride_x + g * op->group_inputs * a.bytes;
        }
        k.weight = (const uint8_t *)op->weight + g * group_weight;
        k.windows = op->windows + g * blocks * 4;
        k.constants = op->constants + g * blocks * 64;
        k.output = out.base + g * op->group_outputs * out.bytes;
        if (words) convolve_words(&k, x0, x1);
        else convolve_bytes(&k, x0, x1);
    }
}

#define LANES 32 /* channels of a depthwise convolution that accumulate in registers */

/* weight: int16 [kernel_h * kernel_w][channels rounded up to LANES]. constants: [4][the same]. */
static void row_depthwise(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0,
                          int64_t x1, uint8_t *scratch) {
    (void)scratch;
    const lichen_tensor *in = &run->tensors[op->a];
    row_view a = view(run, op->a, 0), out = view(run, op->output, y);
    const int64_t padded = (in->channels + LANES - 1) / LANES * LANES;
    for (int64_t c = 0; c < in->channels; c += LANES) {
        const int64_t n = in->channels - c < LANES ? in->channels - c : LANES;
        const int32_t *constants = op->constants + c;
        for (int64_t x = x0; x < x1; x++) {
            int32_t acc[LANES], tap[LANES];
            memcpy(acc, constants, sizeof acc);
            memset(tap, 0, sizeof tap);
            const int16_t *weight = (const int16_t *)op->weight + c;
            FOR(i, op->kernel_h) {
                int64_t row = y * op->stride - op->top + i;
                int64_t at = row < 0 || row >= in->height
                                 ? in->pad_offset
                                 : in->offset + row % in->rows * in->stride_y;
                const uint8_t *p = run->arena + at + c * a.bytes;
                FOR(j, op->kernel_w) {
                    const uint8_t *q = p + (x * op->stride - op->left + j) * a.stride_x;
                    if (n == LANES) load_run(a.storage, q, tap, LANES);
                    else load_run(a.storage, q, tap, n);
                    FOR(l, LANES) acc[l] = add(acc[l], tap[l] * weight[l]);
                    weight += padded;
                }
            }
            FOR(l, n) acc[l] = clip(round_shift(acc[l], constants[padded + l],
                                                constants[2 * padded + l],
                                                constants[3 * padded + l]),
                                    (int32_t)op->low, (int32_t)op->high);
            store_run(out.storage, out.base + x * out.stride_x + c * out.bytes, acc, n);
        }
    }
}

static inline int32_t float_bits(float f) {
    int32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* Bit length of n, 1 .. 2**31 - 1, as the exponent of a float: clearing the second highest bit
 * keeps the conversion from rounding up to the next power of two. */
static inline int32_t bit_length(int32_t n) {
    return (float_bits((float)(n & ~(n >> 1))) >> 23) - 126;
}

/* The entry of arithmetic.GDN_* for a mantissa. Correctly rounded division and square root, then
 * rounding to nearest, give every entry exactly (tests/test_native.py compares all of them), and
 * cost a quarter of a gather. Adding 1.5 * 2**23 leaves the rounded integer in the low bits. */
static inline int32_t gdn_entry(int32_t mantissa, const int mode) {
    const float m = (float)mantissa;
    const float entry = mode == GDN_FORWARD   ? 524288.0f / __builtin_sqrtf(m)
                        : mode == GDN_INVERSE ? 1024.0f * __builtin_sqrtf(m)
                                              : 16777216.0f / m;
    return float_bits(entry + 12582912.0f) & 0x3FFFFF;
}

/* out = saturate(round_shift(x * factor, total)); factor and total as in arithmetic.gdn_factor. */
static inline __attribute__((always_inline)) void gdn_factors(
    const lichen_op *op, int32_t *restrict x, const int32_t *restrict sums, int64_t count,
    const int mode) {
    const int32_t low = (int32_t)op->low, high = (int32_t)op->high, shift = (int32_t)op->shift;
    const int32_t root = mode != SIMPLE_FORWARD;
    const int32_t base = shift + (mode == GDN_FORWARD ? 19 : mode == GDN_INVERSE ? 10 : 24);
    FOR(i, count) {
        const int32_t n = sums[i], bits = bit_length(n);
        const int32_t s = root ? (bits - 9) & ~1 : bits - 10;
        const int32_t right = s > 0 ? s : 0, left = right - s;
        const uint32_t some = s > 0, half = (UINT32_C(1) << right >> 1) - some;
        uint32_t m = (uint32_t)n; /* unsigned: n and the half together may reach 2**31 */
        m = (m + half + (m >> right & some)) >> right << left;
        const int32_t factor = gdn_entry((int32_t)m, mode), step = root ? s >> 1 : s;
        const int32_t exact = mode == GDN_INVERSE ? base - step : base + step;
        const int32_t total = exact > 31 ? 31 : exact; /* from 32 on 0, as it is with 31 */
        const int32_t odd = total > 0;
        const int32_t round = (int32_t)(UINT32_C(1) << total >> 1) - odd;
        x[i] = clip(round_shift(x[i] * factor, total, round, odd), low, high);
    }
}

/* The factor is n itself: the product has up to 46 bits. */
static void gdn_multiply(const lichen_op *op, int32_t *restrict x, const int32_t *restrict sums,
                         int64_t count) {
    const int64_t shift = op->shift, odd = shift > 0;
    const int64_t half = shift == 0 ? 0 : (INT64_C(1) << (shift - 1)) - 1;
    FOR(i, count) {
        int64_t p = (int64_t)x[i] * sums[i];
        p = (p + half + ((p >> shift) & odd)) >> shift;
        x[i] = (int32_t)(p < op->low ? op->low : p > op->high ? op->high : p);
    }
}

static void gdn_apply(const lichen_op *op, int32_t *restrict x, const int32_t *restrict sums,
                      int64_t count) {
    switch (op->mode) {
    case GDN_FORWARD: gdn_factors(op, x, sums, count, GDN_FORWARD); break;
    case GDN_INVERSE: gdn_factors(op, x, sums, count, GDN_INVERSE); break;
    case SIMPLE_FORWARD: gdn_factors(op, x, sums, count, SIMPLE_FORWARD); break;
    default: gdn_multiply(op, x, sums, count);
    }
}

/* The sums are a 1x1 convolution of u - 32768, which fits 16 bits; its bias makes up for it. */
static void row_gdn(const lichen_run *run, const lichen_op *op, int64_t y, int64_t x0, int64_t x1,
                    uint8_t *scratch) {
    row_view a = view(run, op->a, y), out = view(run, op->output, y);
    const int64_t channels = run->tensors[op->a].channels;
    const int64_t inputs = (channels + 3) / 4 * 4, outputs = (channels + 15) / 16 * 16;
    int32_t *sums = (int32_t *)(void *)scratch;
    int32_t *x = sums + GDN_PIXELS * outputs;
    int16_t *u = (int16_t *)(void *)(x + inputs);
    const uint8_t *rows[1] = {(const uint8_t *)u};
    conv_row k = {
        .rows = rows,
        .kernel_h = 1,
        .kernel_w = 1,
        .segments = 1,
        .length = inputs / 2,
        .pixel_step = inputs * 2,
        .weight = op->weight,
        .windows = op->windows,
        .constants = op->constants,
        .output = scratch,
        .output_step = outputs * 4,
        .outputs = channels,
        .storage = STORE_S32,
    };
    const int32_t square = (int32_t)op->shift_a;
    const uint32_t half = (uint32_t)half_minus_1(square), odd = square > 0;
    for (int64_t start = x0; start < x1; start += GDN_PIXELS) {
        const int64_t n = x1 - start < GDN_PIXELS ? x1 - start : GDN_PIXELS;
        FOR(i, n) {
            load_run(a.storage, a.base + (start + i) * a.stride_x, x, channels);
            int16_t *p = u + i * inputs;
            if (op->mode <= GDN_INVERSE)
                FOR(c, channels) { /* a square is at most 2**30, its half at most 2**30 */
                    uint32_t v = (uint32_t)(x[c] * x[c]);
                    v = (v + half + (v >> square & odd)) >> square;
                    p[c] = (int16_t)((int32_t)(v > 65535 ? 65535 : v) - 32768);
                }
            else
                FOR(c, channels) p[c] = (int16_t)((x[c] < 0 ? -x[c] : x[c]) - 32768);
            for (int64_t c = channels; c < inputs; c++) p[c] = 0;
        }
        convolve_words(&k, 0, n);
        FOR(i, n) {
            load_run(a.storage, a.base + (start + i) * a.stride_x, x, channels);
            gdn_apply(op, x, sums + i * outputs, channels);
            store_run(out.storage, out.base + (start + i) * out.stride_x, x, channels);
        }
    }
}

#define KERNELS                                                                                    \
    {                                                                                              \
        [KIND_CONV] = row_conv, [KIND_DEPTHWISE] = row_depthwise, [KIND_COPY] = row_clamp,         \
        [KIND_SHUFFLE] = row_shuffle, [KIND_UNSHUFFLE] = row_unshuffle, [KIND_ADD] = row_add,      \
        [KIND_SCALE] = row_scale, [KIND_CLAMP] = row_clamp, [KIND_TABLE] = row_table,              \
        [KIND_GDN] = row_gdn,                                                                      \
    }
