/* Instruction sets by name, threads, and the loop that runs a plan. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "plan.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

static const lichen_isa *const isas[] = {
    &lichen_isa_plain,
#if defined(__x86_64__)
    &lichen_isa_avx2,
    &lichen_isa_avx512vnni,
#elif defined(__aarch64__)
    &lichen_isa_neon,
#if defined(LICHEN_DOTPROD)
    &lichen_isa_dotprod,
#endif
#endif
};
enum { ISA_COUNT = sizeof isas / sizeof isas[0] };

/* Name of instruction set `index`, slowest first, or NULL past the last. */
LICHEN_API const char *lichen_isa_name(int64_t index) {
    return index >= 0 && index < ISA_COUNT ? isas[index]->name : NULL;
}

LICHEN_API int64_t lichen_isa_supported(int64_t index) {
    return index >= 0 && index < ISA_COUNT && isas[index]->supported();
}

LICHEN_API int64_t lichen_isa_bytes(int64_t index) {
    return index >= 0 && index < ISA_COUNT ? isas[index]->bytes : LICHEN_ERROR_ARGUMENT;
}

/* Multiply from registers alone; returns the number of multiply-accumulates. */
LICHEN_API int64_t lichen_isa_peak(int64_t index, int64_t rounds) {
    if (!lichen_isa_supported(index)) return LICHEN_ERROR_ARGUMENT;
    return isas[index]->peak(rounds);
}

/* Sizes of the structures, for Python to compare with its mirrors. */
LICHEN_API int64_t lichen_plan_sizes(int64_t which) {
    const int64_t sizes[] = {sizeof(lichen_op), sizeof(lichen_tensor), sizeof(lichen_external)};
    return which >= 0 && which < 3 ? sizes[which] : LICHEN_ERROR_ARGUMENT;
}

/* ---- threads ---- */

/* Rows first .. last - 1 of an operation, each cut into `cuts` pieces. */
typedef struct {
    const lichen_run *run;
    const lichen_op *op;
    kernel *work;
    int64_t first, last, cuts;
} step;

typedef struct lichen_pool lichen_pool;

typedef struct {
    lichen_pool *pool;
    pthread_t thread;
    int64_t number; /* 1, 2, ..; the caller of a run is 0 */
} worker;

/* Whoever has time takes the next piece; a step is over when its pieces are, whether or not every
 * worker has been awake for it. So a worker that the system does not run delays nobody. */
struct lichen_pool {
    int64_t threads; /* the caller is one of them */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    /* These change only when no piece is left or being done; so they are read after taking one. */
    step current;
    uint8_t *scratch; /* of all threads */
    int64_t scratch_bytes; /* of each */
    _Atomic uint64_t ticket;   /* number of the step << 32 | pieces left to take */
    _Atomic int64_t finished;  /* pieces of the step */
    _Atomic int64_t sleepers;
    _Atomic int stop;
    worker workers[];
};

/* Waiting: first a few microseconds of spinning; then letting others run, which on a busy machine
 * may be the thread that is waited for; workers sleep after about 100 microseconds, more than the
 * usual time from step to step. */
#define SPINS 200
#define YIELDS 200

static inline void pause_briefly(int64_t round) {
    if (round >= SPINS) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline int64_t pieces_left(const lichen_pool *pool) {
    return (int64_t)(atomic_load(&pool->ticket) & UINT32_MAX);
}

static void do_piece(const step *s, int64_t piece, uint8_t *scratch) {
    const int64_t cut = piece % s->cuts, width = s->op->width;
    s->work(s->run, s->op, s->first + piece / s->cuts, width * cut / s->cuts,
            width * (cut + 1) / s->cuts, scratch);
}

/* Taking a piece can succeed only for the step whose number the ticket bears, and that step stays
 * until the piece is finished. */
static void do_pieces(lichen_pool *pool, int64_t number) {
    uint64_t ticket = atomic_load(&pool->ticket);
    while ((ticket & UINT32_MAX) != 0) {
        if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket - 1)) continue;
        const step *s = &pool->current;
        const int64_t count = (s->last - s->first) * s->cuts;
        do_piece(s, count - (int64_t)(ticket & UINT32_MAX),
                 pool->scratch + number * pool->scratch_bytes);
        atomic_fetch_add(&pool->finished, 1);
        ticket = atomic_load(&pool->ticket);
    }
}

static void *worker_main(void *argument) {
    worker *me = argument;
    lichen_pool *pool = me->pool;
    while (!atomic_load(&pool->stop)) {
        for (int64_t i = 0; pieces_left(pool) == 0 && i < SPINS + YIELDS; i++) pause_briefly(i);
        if (pieces_left(pool) == 0) {
            pthread_mutex_lock(&pool->lock);
            atomic_fetch_add(&pool->sleepers, 1);
            while (pieces_left(pool) == 0 && !atomic_load(&pool->stop))
                pthread_cond_wait(&pool->wake, &pool->lock);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->lock);
        }
        do_pieces(pool, me->number);
    }
    return NULL;
}

/* A worker that counts itself as a sleeper after this load then sees what woke it. */
static void wake_sleepers(lichen_pool *pool) {
    if (atomic_load(&pool->sleepers) == 0) return;
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

LICHEN_API void lichen_pool_free(lichen_pool *pool) {
    if (pool == NULL) return;
    atomic_store(&pool->stop, 1);
    wake_sleepers(pool);
    for (int64_t i = 0; i + 1 < pool->threads; i++) pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->scratch);
    free(pool);
}

/* NULL when memory or threads are refused. */
LICHEN_API lichen_pool *lichen_pool_new(int64_t threads) {
    if (threads < 1 || threads > 1024) return NULL;
    lichen_pool *pool = calloc(1, sizeof *pool + (size_t)threads * sizeof(worker));
    if (pool == NULL) return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (pool->threads = 1; pool->threads < threads; pool->threads++) {
        worker *next = &pool->workers[pool->threads - 1];
        next->pool = pool;
        next->number = pool->threads;
        if (pthread_create(&next->thread, NULL, worker_main, next) != 0) {
            lichen_pool_free(pool);
            return NULL;
        }
    }
    return pool;
}

static int reserve_scratch(lichen_pool *pool, int64_t bytes) {
    bytes = (bytes + 127) / 64 * 64; /* a whole cache line apart */
    if (pool->scratch_bytes >= bytes) return LICHEN_OK;
    free(pool->scratch);
    pool->scratch_bytes = 0;
    pool->scratch = malloc((size_t)(bytes * pool->threads));
    if (pool->scratch == NULL) return LICHEN_ERROR_MEMORY;
    pool->scratch_bytes = bytes;
    return LICHEN_OK;
}

static void do_step(lichen_pool *pool, step s) {
    /* Few rows are cut, so that there are some pieces for each thread; not below 16 columns. */
    const int64_t wanted = pool->threads == 1 ? 1 : 4 * pool->threads, rows = s.last - s.first;
    s.cuts = rows >= wanted ? 1 : (wanted + rows - 1) / rows;
    if (s.cuts > s.op->width / 16) s.cuts = s.op->width / 16;
    if (s.cuts < 1) s.cuts = 1;
    const int64_t count = rows * s.cuts;
    if (pool->threads == 1 || count == 1) {
        for (int64_t i = 0; i < count; i++) do_piece(&s, i, pool->scratch);
        return;
    }
    pool->current = s;
    atomic_store(&pool->finished, 0);
    const uint64_t number = (atomic_load(&pool->ticket) >> 32) + 1;
    atomic_store(&pool->ticket, number << 32 | (uint64_t)count);
    wake_sleepers(pool);
    do_pieces(pool, 0);
    for (int64_t i = 0; atomic_load(&pool->finished) < count; i++) pause_briefly(i);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Run `count` steps: (operation, first row, last row + 1) each. One run at a time per pool. */
LICHEN_API int64_t lichen_run_plan(int64_t isa, lichen_pool *pool, const lichen_run *run,
                                   const int32_t *steps, int64_t count, int64_t scratch_bytes) {
    if (!lichen_isa_supported(isa) || pool == NULL) return LICHEN_ERROR_ARGUMENT;
    const int error = reserve_scratch(pool, scratch_bytes);
    if (error != LICHEN_OK) return error;
    for (int64_t i = 0; i < count; i++, steps += 3) {
        const lichen_op *op = &run->ops[steps[0]];
        const int64_t start = run->nanoseconds ? now() : 0;
        do_step(pool, (step){run, op, isas[isa]->kernels[op->kind], steps[1], steps[2], 1});
        if (run->nanoseconds) run->nanoseconds[i] = now() - start;
    }
    return LICHEN_OK;
}
