/* Transpose small matrices of bytes or 16-bit words: eight by eight in registers where there are
 * any, element by element at the edges. */

#if defined(__SSE2__)
#include <emmintrin.h>
typedef __m128i vector;
#define LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define STORE(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define LOAD_HALF(p) _mm_loadl_epi64((const __m128i *)(const void *)(p))
#define LOW_8(a, b) _mm_unpacklo_epi8(a, b)
#define LOW_16(a, b) _mm_unpacklo_epi16(a, b)
#define HIGH_16(a, b) _mm_unpackhi_epi16(a, b)
#define LOW_32(a, b) _mm_unpacklo_epi32(a, b)
#define HIGH_32(a, b) _mm_unpackhi_epi32(a, b)
#define LOW_64(a, b) _mm_unpacklo_epi64(a, b)
#define HIGH_64(a, b) _mm_unpackhi_epi64(a, b)
#define TRANSPOSE_VECTORS 1
#elif defined(__aarch64__)
#include <arm_neon.h>
typedef uint8x16_t vector;
#define AS(bits, a) vreinterpretq_u##bits##_u8(a)
#define BACK(bits, a) vreinterpretq_u8_u##bits(a)
#define LOAD(p) vld1q_u8(p)
#define STORE(p, v) vst1q_u8(p, v)
#define LOAD_HALF(p) vcombine_u8(vld1_u8(p), vdup_n_u8(0))
#define LOW_8(a, b) vzip1q_u8(a, b)
#define LOW_16(a, b) BACK(16, vzip1q_u16(AS(16, a), AS(16, b)))
#define HIGH_16(a, b) BACK(16, vzip2q_u16(AS(16, a), AS(16, b)))
#define LOW_32(a, b) BACK(32, vzip1q_u32(AS(32, a), AS(32, b)))
#define HIGH_32(a, b) BACK(32, vzip2q_u32(AS(32, a), AS(32, b)))
#define LOW_64(a, b) BACK(64, vzip1q_u64(AS(64, a), AS(64, b)))
#define HIGH_64(a, b) BACK(64, vzip2q_u64(AS(64, a), AS(64, b)))
#define TRANSPOSE_VECTORS 1
#endif

#if defined(TRANSPOSE_VECTORS)
static inline void transpose_8x8_words(uint8_t *to, int64_t to_step, const uint8_t *from,
                                       int64_t from_step) {
    vector r[8], s[8];
    for (int i = 0; i < 8; i++) r[i] = LOAD(from + i * from_step);
    for (int i = 0; i < 4; i++) {
        s[2 * i] = LOW_16(r[2 * i], r[2 * i + 1]);
        s[2 * i + 1] = HIGH_16(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = LOW_32(s[4 * i], s[4 * i + 2]);
        r[4 * i + 1] = HIGH_32(s[4 * i], s[4 * i + 2]);
        r[4 * i + 2] = LOW_32(s[4 * i + 1], s[4 * i + 3]);
        r[4 * i + 3] = HIGH_32(s[4 * i + 1], s[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        STORE(to + (2 * i) * to_step, LOW_64(r[i], r[i + 4]));
        STORE(to + (2 * i + 1) * to_step, HIGH_64(r[i], r[i + 4]));
    }
}

static inline void transpose_8x8_bytes(uint8_t *to, int64_t to_step, const uint8_t *from,
                                       int64_t from_step) {
    vector r[8], s[4];
    uint8_t rows[64];
    for (int i = 0; i < 4; i++)
        r[i] = LOW_8(LOAD_HALF(from + 2 * i * from_step), LOAD_HALF(from + (2 * i + 1) * from_step));
    for (int i = 0; i < 2; i++) {
        s[2 * i] = LOW_16(r[2 * i], r[2 * i + 1]);
        s[2 * i + 1] = HIGH_16(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        STORE(rows + 32 * i, LOW_32(s[i], s[i + 2]));
        STORE(rows + 32 * i + 16, HIGH_32(s[i], s[i + 2]));
    }
    for (int i = 0; i < 8; i++) memcpy(to + i * to_step, rows + 8 * i, 8);
}
#endif

/* The edges, element by element. */
static inline void transpose_edge(uint8_t *to, int64_t to_step, const uint8_t *from,
                                  int64_t from_step, int64_t rows, int64_t columns,
                                  const int64_t bytes) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            memcpy(to + j * to_step + i * bytes, from + i * from_step + j * bytes, (size_t)bytes);
}

/* to[j][i] = from[i][j] for i < rows and j < columns. Rows of both are contiguous; steps between
 * rows in bytes. */
static inline void transpose_of(uint8_t *to, int64_t to_step, const uint8_t *from,
                                int64_t from_step, int64_t rows, int64_t columns,
                                const int64_t bytes) {
    int64_t i = 0;
#if defined(TRANSPOSE_VECTORS)
    for (; i + 8 <= rows; i += 8) {
        int64_t j = 0;
        for (; j + 8 <= columns; j += 8) {
            uint8_t *t = to + j * to_step + i * bytes;
            const uint8_t *f = from + i * from_step + j * bytes;
            if (bytes == 2) transpose_8x8_words(t, to_step, f, from_step);
            else transpose_8x8_bytes(t, to_step, f, from_step);
        }
        transpose_edge(to + j * to_step + i * bytes, to_step, from + i * from_step + j * bytes,
                       from_step, 8, columns - j, bytes);
    }
#endif
    transpose_edge(to + i * bytes, to_step, from + i * from_step, from_step, rows - i, columns,
                   bytes);
}

static void transpose(uint8_t *to, int64_t to_step, const uint8_t *from, int64_t from_step,
                      int64_t rows, int64_t columns, int64_t bytes) {
    if (bytes == 2) transpose_of(to, to_step, from, from_step, rows, columns, 2);
    else transpose_of(to, to_step, from, from_step, rows, columns, 1);
}
