/* Accumulators of conv_neon.c and conv_dotprod.c: from the biases, and to rounded outputs. */

INLINE void load_biases(const conv_row *k, int64_t first, int32x4_t acc[][4], const int pixels) {
    const int32_t *bias = k->constants + first * 4;
#pragma GCC unroll 4
    for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) acc[p][v] = vld1q_s32(bias + 4 * v);
}

INLINE void store_tile(const conv_row *k, int64_t first, int64_t x, int32x4_t acc[][4],
                       const int pixels) {
    const int32_t *constants = k->constants + first * 4;
    const int32x4_t low = vdupq_n_s32(k->low), high = vdupq_n_s32(k->high);
    const int64_t n = k->outputs - first < 16 ? k->outputs - first : 16;
    for (int p = 0; p < pixels; p++) {
        int32_t whole[16];
        uint8_t *to = k->output + (x + p) * k->output_step + first * storage_bytes(k->storage);
        for (int v = 0; v < 4; v++) {
            int32x4_t a = acc[p][v];
            if (k->storage != STORE_S32) {
                const int32x4_t right = vnegq_s32(vld1q_s32(constants + 16 + 4 * v));
                const int32x4_t half = vld1q_s32(constants + 32 + 4 * v);
                const int32x4_t odd = vld1q_s32(constants + 48 + 4 * v);
                const int32x4_t bit = vandq_s32(vshlq_s32(a, right), odd);
                a = vshlq_s32(vaddq_s32(vaddq_s32(a, half), bit), right);
                a = vminq_s32(vmaxq_s32(a, low), high);
            }
            vst1q_s32(whole + 4 * v, a);
        }
        if (k->storage == STORE_S32) memcpy(to, whole, (size_t)n * 4);
        else store_run(k->storage, to, whole, n);
    }
}
