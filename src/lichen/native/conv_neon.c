/* Any 64-bit ARM: 16-bit products that accumulate in 32 bits. */
#include "plan.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#include "rows.h"

#define PIXELS 4 /* times four accumulators; with four weights 24 of 32 registers */
#define INLINE static inline __attribute__((always_inline))

#include "store_neon.h"

/* `pixels` output pixels from x on, 16 outputs. */
INLINE void tile(const conv_row *k, const uint8_t *block, const window *n, int64_t x,
                 int64_t first, const int pixels) {
    int32x4_t acc[PIXELS][4];
    load_biases(k, first, acc, pixels);
    const int64_t step = k->pixel_step;
    for (int64_t i = n->row0; i < n->row1; i++)
        for (int64_t j = n->segment0; j < n->segment1; j++) {
            const uint8_t *w = block + ((i * k->segments + j) * k->length + n->start) * 64;
            const uint8_t *from = k->rows[i] + x * step + j * k->segment_step + n->start * 4;
            for (int64_t l = 0; l < n->length; l++, w += 64, from += 4) {
                const int16_t *pairs = (const int16_t *)(const void *)w;
                const int16x8x2_t w0 = vld2q_s16(pairs), w1 = vld2q_s16(pairs + 16);
#pragma GCC unroll 4
                for (int p = 0; p < pixels; p++) {
                    int32_t pair;
                    memcpy(&pair, from + p * step, 4);
                    const int16x4_t in = vreinterpret_s16_s32(vdup_n_s32(pair));
#pragma GCC unroll 2
                    for (int c = 0; c < 2; c++) {
                        const int16x8_t a = w0.val[c], b = w1.val[c];
                        const int16x4_t v = c == 0 ? vdup_lane_s16(in, 0) : vdup_lane_s16(in, 1);
                        const int16x8_t vv = vcombine_s16(v, v);
                        acc[p][0] = vmlal_s16(acc[p][0], vget_low_s16(a), v);
                        acc[p][1] = vmlal_high_s16(acc[p][1], a, vv);
                        acc[p][2] = vmlal_s16(acc[p][2], vget_low_s16(b), v);
                        acc[p][3] = vmlal_high_s16(acc[p][3], b, vv);
                    }
                }
            }
        }
    store_tile(k, first, x, acc, pixels);
}

static void convolve_words(const conv_row *k, int64_t x0, int64_t x1) {
    const int64_t block_bytes = k->kernel_h * k->segments * k->length * 64;
    for (int64_t first = 0; first < k->outputs; first += 16) {
        const uint8_t *block = k->weight + first / 16 * block_bytes;
        const window n = window_of(k, first / 16, 1);
        int64_t x = x0;
        for (; x + PIXELS <= x1; x += PIXELS) tile(k, block, &n, x, first, PIXELS);
        for (; x < x1; x++) tile(k, block, &n, x, first, 1);
    }
}

#if !defined(WORDS_ONLY)
/* Never called: nothing is stored in bytes here. */
static void convolve_bytes(const conv_row *k, int64_t x0, int64_t x1) {
    (void)k, (void)x0, (void)x1;
}

#include "transforms.h"

static int supported(void) { return 1; }

static int64_t peak(int64_t rounds) {
    int32x4_t acc[16];
    int16x4_t w = vdup_n_s16(1);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) acc[i] = vdupq_n_s32(0);
    FOR(r, rounds) {
        __asm__("" : "+w"(w)); /* or the compiler would multiply once */
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) acc[i] = vmlal_s16(acc[i], w, w);
    }
#pragma GCC unroll 16
    for (int i = 1; i < 16; i++) acc[0] = vaddq_s32(acc[0], acc[i]);
    volatile int32_t sink = vaddvq_s32(acc[0]);
    (void)sink;
    return rounds * 16 * 4;
}

const lichen_isa lichen_isa_neon = {"neon", supported, 0, KERNELS, peak};
#endif
#else
typedef int lichen_no_neon; /* ISO C wants a declaration */
#endif
