/* AVX-512 with VNNI: u8 by s8 and s16 by s16 dot products, exact (the accumulators wrap). */
#include "plan.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("avx2,fma,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"))),        \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#pragma GCC target("prefer-vector-width=512")
#endif

#include "rows.h"

/* A tile is up to 14 pixels times 32 outputs: 28 accumulators, two weights and a pixel of 32
 * registers. */
#define PIXELS_MAX 14
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    const uint8_t *weight; /* of the first vector of outputs */
    const int32_t *constants;
    window window;
    int64_t x, first;
} corner;

/* Round, saturate and store accumulators [pixels][vectors]. */
INLINE void finish(const conv_row *k, const corner *at, const __m512i *acc, int64_t pixels,
                   int64_t vectors, const int storage) {
    for (int64_t v = 0; v < vectors; v++) {
        const int32_t *constants = at->constants + v * 64;
        const __m512i shift = _mm512_loadu_si512(constants + 16);
        const __m512i half = _mm512_loadu_si512(constants + 32);
        const __m512i odd = _mm512_loadu_si512(constants + 48);
        const int64_t channel = at->first + v * 16, left = k->outputs - channel;
        const __mmask16 mask = (__mmask16)(left < 16 ? (1 << left) - 1 : 0xFFFF);
        uint8_t *to = k->output + at->x * k->output_step + channel * storage_bytes(storage);
        for (int64_t p = 0; p < pixels; p++, to += k->output_step) {
            __m512i x = acc[p * vectors + v];
            if (storage == STORE_S32) {
                _mm512_mask_storeu_epi32(to, mask, x);
                continue;
            }
            const __m512i bit = _mm512_and_si512(_mm512_srav_epi32(x, shift), odd);
            x = _mm512_srav_epi32(_mm512_add_epi32(_mm512_add_epi32(x, half), bit), shift);
            if (storage == STORE_U8) {
                x = _mm512_max_epi32(x, _mm512_setzero_si512());
                _mm_mask_storeu_epi8(to, mask, _mm512_cvtusepi32_epi8(x));
            } else if (storage == STORE_S8X) {
                const __m128i bytes = _mm512_cvtsepi32_epi8(x);
                _mm_mask_storeu_epi8(to, mask, _mm_xor_si128(bytes, _mm_set1_epi8(-128)));
            } else {
                _mm256_mask_storeu_epi16(to, mask, _mm512_cvtsepi32_epi16(x));
            }
        }
    }
}

static __attribute__((noinline)) void finish_tile(const conv_row *k, const corner *at,
                                                  const __m512i *acc, int64_t pixels,
                                                  int64_t vectors) {
    switch (k->storage) {
    case STORE_U8: finish(k, at, acc, pixels, vectors, STORE_U8); break;
    case STORE_S8X: finish(k, at, acc, pixels, vectors, STORE_S8X); break;
    case STORE_S16: finish(k, at, acc, pixels, vectors, STORE_S16); break;
    default: finish(k, at, acc, pixels, vectors, STORE_S32);
    }
}

/* `pixels` output pixels from x on, `vectors` times 16 outputs. The dot products are written in
 * assembly because GCC 12 copies accumulators around the intrinsics. Pixels are addressed as bases
 * three steps apart plus 0, 1 or 2 steps, which the processor's address modes hold. */
INLINE void tile(const conv_row *k, const corner *at, const int pixels, const int vectors,
                 const int words) {
    __m512i acc[PIXELS_MAX][2];
    const int64_t block_bytes = k->kernel_h * k->segments * k->length * 64;
#pragma GCC unroll 14
    for (int p = 0; p < pixels; p++) {
        acc[p][0] = _mm512_loadu_si512(at->constants);
        if (vectors > 1) acc[p][1] = _mm512_loadu_si512(at->constants + 64);
    }
    const window n = at->window;
    const int64_t step = k->pixel_step, length = n.length;
    for (int64_t i = n.row0; i < n.row1; i++) for (int64_t j = n.segment0; j < n.segment1; j++) {
        const uint8_t *w = at->weight + ((i * k->segments + j) * k->length + n.start) * 64;
        const uint8_t *f0 = k->rows[i] + at->x * step + j * k->segment_step + n.start * 4;
        const uint8_t *f3 = f0 + 3 * step, *f6 = f3 + 3 * step, *f9 = f6 + 3 * step;
        const uint8_t *f12 = f9 + 3 * step;
        FOR(l, length) {
            const __m512i w0 = _mm512_loadu_si512(w);
            const __m512i w1 = vectors > 1 ? _mm512_loadu_si512(w + block_bytes) : w0;
#pragma GCC unroll 14
            for (int p = 0; p < pixels; p++) {
                const uint8_t *f = p < 3 ? f0 : p < 6 ? f3 : p < 9 ? f6 : p < 12 ? f9 : f12;
                __m512i in;
                __asm__("vpbroadcastd %1, %0"
                        : "=v"(in)
                        : "m"(*(const int32_t(*)[1])(const void *)(f + p % 3 * step)));
                if (words) {
                    __asm__("vpdpwssd %1, %2, %0" : "+v"(acc[p][0]) : "v"(in), "v"(w0));
                    if (vectors > 1)
                        __asm__("vpdpwssd %1, %2, %0" : "+v"(acc[p][1]) : "v"(in), "v"(w1));
                } else {
                    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc[p][0]) : "v"(in), "v"(w0));
                    if (vectors > 1)
                        __asm__("vpdpbusd %2, %1, %0" : "+v"(acc[p][1]) : "v"(in), "v"(w1));
                }
            }
            f0 += 4, w += 64;
            if (pixels > 3) f3 += 4;
            if (pixels > 6) f6 += 4;
            if (pixels > 9) f9 += 4;
            if (pixels > 12) f12 += 4;
            __asm__("" : "+r"(f3), "+r"(f6), "+r"(f9), "+r"(f12)); /* keep them as bases */
        }
    }
    __m512i sums[PIXELS_MAX * 2];
#pragma GCC unroll 14
    for (int p = 0; p < pixels; p++) {
        sums[p * vectors] = acc[p][0];
        if (vectors > 1) sums[p * vectors + 1] = acc[p][1];
    }
    finish_tile(k, at, sums, pixels, vectors);
}

#define TILE(n)                                                                                    \
    case n: tile(k, at, n, vectors, words); break;
#define TILES(name, vectors_, words_)                                                              \
    static void name(const conv_row *k, const corner *at, int64_t pixels) {                        \
        enum { vectors = vectors_, words = words_ };                                               \
        switch (pixels) {                                                                          \
            TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7)                                \
            TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)                           \
        }                                                                                          \
    }
TILES(bytes_1, 1, 0)
TILES(bytes_2, 2, 0)
TILES(words_1, 1, 1)
TILES(words_2, 2, 1)

INLINE void convolve(const conv_row *k, int64_t x0, int64_t x1, const int words) {
    const int64_t block_bytes = k->kernel_h * k->segments * k->length * 64;
    const int64_t tiles = (x1 - x0 + PIXELS_MAX - 1) / PIXELS_MAX;
    corner at;
    for (at.first = 0; at.first < k->outputs; at.first += 32) {
        const int64_t vectors = k->outputs - at.first > 16 ? 2 : 1;
        at.weight = k->weight + at.first / 16 * block_bytes;
        at.constants = k->constants + at.first * 4;
        at.window = window_of(k, at.first / 16, vectors);
        at.x = x0;
        for (int64_t t = 0; t < tiles; t++) { /* tiles of nearly equal width */
            const int64_t pixels = (x1 - at.x) / (tiles - t);
            if (words) (vectors == 2 ? words_2 : words_1)(k, &at, pixels);
            else (vectors == 2 ? bytes_2 : bytes_1)(k, &at, pixels);
            at.x += pixels;
        }
    }
}

static void convolve_bytes(const conv_row *k, int64_t x0, int64_t x1) { convolve(k, x0, x1, 0); }
static void convolve_words(const conv_row *k, int64_t x0, int64_t x1) { convolve(k, x0, x1, 1); }

#include "transforms.h"

static int64_t peak(int64_t rounds) {
    __m512i acc[24], w = _mm512_set1_epi8(1), sum = w;
#pragma GCC unroll 24
    for (int i = 0; i < 24; i++) acc[i] = w;
    FOR(r, rounds) {
#pragma GCC unroll 24
        for (int i = 0; i < 24; i++) __asm__("vpdpbusd %1, %1, %0" : "+v"(acc[i]) : "v"(w));
    }
#pragma GCC unroll 24
    for (int i = 0; i < 24; i++) sum = _mm512_add_epi32(sum, acc[i]);
    volatile int32_t sink = _mm512_reduce_add_epi32(sum); /* or nothing would be computed */
    (void)sink;
    return rounds * 24 * 64;
}

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

static int supported(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2");
}

const lichen_isa lichen_isa_avx512vnni = {"avx512vnni", supported, 1, KERNELS, peak};
#else
typedef int lichen_no_avx512; /* ISO C wants a declaration */
#endif
