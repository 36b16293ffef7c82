/* 64-bit ARM with dot products of signed bytes: bytes are stored as everywhere, u8 or s8 + 128, and
 * lose 128 on the way; the bias makes up for it. */
#include "plan.h"

#if defined(LICHEN_DOTPROD)
#include <arm_neon.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#define WORDS_ONLY 1
#include "conv_neon.c" /* for its convolve_words */

/* `pixels` output pixels from x on, 16 outputs. */
INLINE void tile_bytes(const conv_row *k, const uint8_t *block, const window *n, int64_t x,
                       int64_t first, const int pixels) {
    int32x4_t acc[PIXELS][4];
    load_biases(k, first, acc, pixels);
    const int64_t step = k->pixel_step;
    const uint8x16_t flip = vdupq_n_u8(128);
    for (int64_t i = n->row0; i < n->row1; i++)
        for (int64_t j = n->segment0; j < n->segment1; j++) {
            const uint8_t *start = block + ((i * k->segments + j) * k->length + n->start) * 64;
            const int8_t *w = (const int8_t *)start;
            const uint8_t *from = k->rows[i] + x * step + j * k->segment_step + n->start * 4;
            int64_t l = 0;
            for (; l + 4 <= n->length; l += 4, w += 256, from += 16) {
                int8x16_t in[PIXELS];
#pragma GCC unroll 4
                for (int p = 0; p < pixels; p++)
                    in[p] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from + p * step), flip));
#define FOUR_CHANNELS(lane)                                                                        \
    for (int v = 0; v < 4; v++) {                                                                  \
        const int8x16_t weight = vld1q_s8(w + (lane) * 64 + v * 16);                               \
        _Pragma("GCC unroll 4") for (int p = 0; p < pixels; p++)                                   \
            acc[p][v] = vdotq_laneq_s32(acc[p][v], weight, in[p], lane);                           \
    }
#pragma GCC unroll 4
                FOUR_CHANNELS(0)
#pragma GCC unroll 4
                FOUR_CHANNELS(1)
#pragma GCC unroll 4
                FOUR_CHANNELS(2)
#pragma GCC unroll 4
                FOUR_CHANNELS(3)
            }
            for (; l < n->length; l++, w += 64, from += 4)
#pragma GCC unroll 4
                for (int p = 0; p < pixels; p++) {
                    uint32_t four;
                    memcpy(&four, from + p * step, 4);
                    const uint8x16_t in = vreinterpretq_u8_u32(vdupq_n_u32(four));
#pragma GCC unroll 4
                    for (int v = 0; v < 4; v++)
                        acc[p][v] = vdotq_s32(acc[p][v], vld1q_s8(w + v * 16),
                                              vreinterpretq_s8_u8(veorq_u8(in, flip)));
                }
        }
    store_tile(k, first, x, acc, pixels);
}

static void convolve_bytes(const conv_row *k, int64_t x0, int64_t x1) {
    const int64_t block_bytes = k->kernel_h * k->segments * k->length * 64;
    for (int64_t first = 0; first < k->outputs; first += 16) {
        const uint8_t *block = k->weight + first / 16 * block_bytes;
        const window n = window_of(k, first / 16, 1);
        int64_t x = x0;
        for (; x + PIXELS <= x1; x += PIXELS) tile_bytes(k, block, &n, x, first, PIXELS);
        for (; x < x1; x++) tile_bytes(k, block, &n, x, first, 1);
    }
}

#include "transforms.h"

static int64_t peak(int64_t rounds) {
    int32x4_t acc[16];
    int8x16_t w = vdupq_n_s8(1);
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) acc[i] = vdupq_n_s32(0);
    FOR(r, rounds) {
        __asm__("" : "+w"(w)); /* or the compiler would multiply once */
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) acc[i] = vdotq_s32(acc[i], w, w);
    }
#pragma GCC unroll 16
    for (int i = 1; i < 16; i++) acc[0] = vaddq_s32(acc[0], acc[i]);
    volatile int32_t sink = vaddvq_s32(acc[0]);
    (void)sink;
    return rounds * 16 * 16;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__linux__)
#include <sys/auxv.h>
static int supported(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* ASIMDDP */
#elif defined(__APPLE__)
static int supported(void) { return 1; } /* every Apple processor with macOS on ARM */
#else
static int supported(void) { return 0; }
#endif

const lichen_isa lichen_isa_dotprod = {"dotprod", supported, 2, KERNELS, peak};
#else
typedef int lichen_no_dotprod; /* ISO C wants a declaration */
#endif
