/* Means of models in one pass over memory: the fast form of kernels/_power.py.
 *
 * A plain shared library, called through ctypes (_native.py): no Python, torch or OpenMP in here,
 * no state between calls, so it may be used before and after a fork. Every function works on flat
 * arrays of n values; `mean` may be one of the inputs, as values are written after they were read.
 * Threads start and end within a call, and give the results of one.
 *
 * The logarithm and the exponential are minimax polynomials (Remez' algorithm) on the reduced
 * ranges of Sun's fdlibm and Moshier's Cephes. Their relative errors are 3e-8 and 4e-9 in float32,
 * 8e-18 and 6e-18 in float64, not counting the rounding of their evaluation. Power means of float32
 * have shorter ones on processors with AVX-512 (_native_avx512.h), so the last bits of a result may
 * differ between processors, as they do between those with and without fused multiplication.
 */

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#define TILE 1024 /* values of a model that are worked on at a time: a page in float32 */
#define BLOCK 64
#define LANES 16
#define WHOLE_BLOCKS(n) (((n) + BLOCK - 1) / BLOCK * BLOCK)
#define LARGEST_ODD 31 /* degrees up to it are products: 4^31 is far from overflow */
#define MAX_THREADS 64
#define WORK_OF_A_THREAD (1 << 18) /* values; starting a thread costs as much as 1e5 of them */

#define COUNT(array) (sizeof(array) / sizeof(array)[0])
#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

/* On x86-64 the loader picks the widest vectors that the processor has; others have one width. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

/* Tests leave it out, to reach what other processors run. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#define HAS_AVX512
#endif

typedef struct {
    const void *xs; /* pointers to the inputs */
    const double *weights;
    int64_t models;
    double p;
    int odd;     /* p, if it is taken by multiplication; else 0 */
    void *mean;  /* NULL if not wanted */
    void *slope; /* NULL if not wanted */
    int *special;
} job_t;

typedef void work_t(const job_t *job, int64_t begin, int64_t end);

#define REAL float
#define BITS uint32_t
#define SIGNED int32_t
#define NAME(x) x##_f32
#define MANTISSA 23
#define BIAS 127
#define LOG2_SERIES                                                                              \
    {1.442695005f, -0.7213471993f, 0.4809102798f, -0.3607162641f, 0.287939095f, -0.2386756752f, \
     0.2152122427f, -0.2089338486f, 0.1292643632f}
#define EXP2_SERIES                                                                       \
    {0.693147188f, 0.2402265108f, 0.05550357105f, 0.009618030771f, 0.001339086685f, \
     0.00015469735f}
#include "_native_kernel.h"
#ifdef HAS_AVX512
#include "_native_avx512.h"
#endif
#undef REAL
#undef BITS
#undef SIGNED
#undef NAME
#undef MANTISSA
#undef BIAS
#undef LOG2_SERIES
#undef EXP2_SERIES

#define REAL double
#define BITS uint64_t
#define SIGNED int64_t
#define NAME(x) x##_f64
#define MANTISSA 52
#define BIAS 1023
#define LOG2_SERIES                                                                      \
    {1.442695040888963409, -0.7213475204444823773, 0.4808983469629849242,                \
     -0.3606737602218320066, 0.2885390081783779252, -0.2404491735547510595,              \
     0.2060992915472753875, -0.1803368741212420936, 0.1602994441435865277,               \
     -0.1442697685792802404, 0.1311545099415207069, -0.1202178437597497464,              \
     0.1109611268209587846, -0.1031485482701389437, 0.0964868827213186154,               \
     -0.0894241511089222806, 0.0814937507078039487, -0.08146408402713997949,             \
     0.09433639315149959425, -0.08799542255898315381, 0.03883356984535030249}
#define EXP2_SERIES                                                                      \
    {0.6931471805599453091, 0.2402265069591009822, 0.05550410866482165976,               \
     0.009618129107606886741, 0.001333355814639600095, 0.0001540353044173862046,         \
     0.00001525273385328286235, 1.321544258655142888e-6, 1.017805172724655968e-7,        \
     7.072586192801595161e-9, 4.456675584944192066e-10}
#include "_native_kernel.h"

typedef struct {
    const job_t *job;
    work_t *work;
    int64_t begin, end;
} slice_t;

static void *run_slice(void *argument)
{
    const slice_t *slice = argument;
    slice->work(slice->job, slice->begin, slice->end);
    return NULL;
}

/* Split n coordinates into one slice per thread; the caller works on the first one itself. */
static void run(const job_t *job, work_t *work, int64_t n, int threads)
{
    slice_t slices[MAX_THREADS];
    pthread_t started[MAX_THREADS];
    int is_started[MAX_THREADS];
    int64_t useful = job->models * n / WORK_OF_A_THREAD;
    threads = threads < MAX_THREADS ? threads : MAX_THREADS;
    threads = useful < threads ? (int)useful : threads;
    threads = threads > 1 ? threads : 1;
    int64_t tiles = (n + TILE - 1) / TILE, share = (tiles + threads - 1) / threads * TILE;

    for (int t = threads - 1; t >= 0; t--) {
        int64_t begin = t * share < n ? t * share : n;
        int64_t end = begin + share < n ? begin + share : n;
        slices[t] = (slice_t){job, work, begin, end};
        is_started[t] = t > 0 && !pthread_create(&started[t], NULL, run_slice, &slices[t]);
        if (!is_started[t])
            run_slice(&slices[t]);
    }
    for (int t = 1; t < threads; t++)
        if (is_started[t])
            pthread_join(started[t], NULL);
}

/* The fastest power mean of float32 that the processor can compute. */
static work_t *power_mean_of_floats(void)
{
#ifdef HAS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"))
        return power_mean_avx512;
#endif
    return power_mean_f32;
}

/* The functions of the library; `xs` are `models` arrays of n doubles if `wide`, else floats. */

void p2p_mean(const void *xs, const double *weights, int64_t models, int64_t n, int wide,
              int threads, void *mean)
{
    job_t job = {.xs = xs, .weights = weights, .models = models, .mean = mean};
    run(&job, wide ? mean_f64 : mean_f32, n, threads);
}

/* Copy the array of n that `xs` points to; 1 if all its numbers are finite. */
int p2p_copy(const void *xs, int64_t n, int wide, int threads, void *copy)
{
    int special = 0;
    job_t job = {.xs = xs, .models = 1, .mean = copy, .special = &special};
    run(&job, wide ? copy_f64 : copy_f32, n, threads);
    return !special;
}

/* `mean` or `slope` may be NULL; p >= 1. */
void p2p_power_mean(const void *xs, const double *weights, int64_t models, int64_t n, int wide,
                    int threads, double p, void *mean, void *slope)
{
    job_t job = {.xs = xs, .weights = weights, .models = models, .p = p};
    job.mean = mean;
    job.slope = slope;
    if (p > 1 && p <= LARGEST_ODD && p == (int)p && (int)p % 2 == 1)
        job.odd = (int)p;
    run(&job, wide ? power_mean_f64 : power_mean_of_floats(), n, threads);
}

/* x.y, x.x and y.y of the two arrays `xs`, in `sums`; always by one thread, in one order. */
void p2p_dots(const void *xs, int64_t n, int wide, double *sums)
{
    job_t job = {.xs = xs, .models = 2, .mean = sums};
    run(&job, wide ? dots_f64 : dots_f32, n, 1);
}
