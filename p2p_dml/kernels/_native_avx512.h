/* The power mean of float32 by AVX-512, whose instructions take floats apart and put them together.
 *
 * A block of BLOCK coordinates stays in registers while the models are added to it. With M the
 * largest |x_j| and 2^E <= M < 2^(E+1), S is the sum of a_j sgn(x_j) |x_j / 2^E|^p and the mean is
 * 2^E S^(1/p). No sum overflows up to p = LARGEST_UNLEVELLED. Beyond it, and where the slope is
 * wanted, real powers are relative to M, so that equal models have logarithms of exactly 0.
 *
 * Denormal numbers have exponents as others do. The logarithm of 0 is -infinity, and 2^-infinity
 * is 0. Inputs that are not finite give NaN: of two operands of which one is NaN, min and max
 * return the second. Without rounding, log2 has an absolute error of 4e-8 and exp2 a relative one
 * of 2e-9 (minimax polynomials, as in _native.c).
 */

#include <immintrin.h>

#define AVX512 __attribute__((target("avx512f,avx512dq")))
#define AVX512_INLINE AVX512 INLINE
#define WIDTH 16
#define VECTORS (BLOCK / WIDTH)
#define EACH _Pragma("GCC unroll 4") for (int i = 0; i < VECTORS; i++)
#define ALL _mm512_set1_ps
#define LARGEST_UNLEVELLED 64
#define FOLLOWED_STREAMS 8 /* up to so many are fetched faster if the processor is left alone */

typedef __m512 vector_t;

/* Of a block: M, E, log2(M / 2^E) or 0, S, and dS/dp in units of ln 2. */
typedef struct {
    vector_t top[VECTORS], exponent[VECTORS], level[VECTORS], total[VECTORS], change[VECTORS];
} registers_t;

/* Which lanes of a block's vector number i are among its first `count`: all, in the main loop. */
AVX512_INLINE __mmask16 lanes(int i, int64_t count)
{
    int64_t left = count - i * WIDTH;
    return left >= WIDTH ? 0xFFFF : (__mmask16)((1 << (left > 0 ? left : 0)) - 1);
}

AVX512_INLINE vector_t load(const float *x, int i, int64_t count)
{
    return _mm512_maskz_loadu_ps(lanes(i, count), x + i * WIDTH);
}

/* `value`, with the other sign where x has a minus. */
AVX512_INLINE vector_t turned_by(vector_t value, vector_t x)
{
    enum { VALUE_XOR_A_AND_B = 0x78 };
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(
        _mm512_castps_si512(value), _mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN),
        VALUE_XOR_A_AND_B));
}

/* log2 |x| - exponent, where the difference of exponents is exact.
 *
 * The mantissa's sixteenth of [1, 2) has 1 / c in its middle: m c = 1 + r with |r| <= 1/33.
 */
AVX512_INLINE vector_t log2_from(vector_t exponent, vector_t x)
{
    static const float inverses[WIDTH] ALIGNED = {
        0.969696999f, 0.914285719f, 0.864864886f, 0.820512831f, 0.780487776f, 0.744186044f,
        0.71111113f,  0.680851042f, 0.653061211f, 0.627451003f, 0.603773713f, 0.581818163f,
        0.561403513f, 0.542372882f, 0.524590135f, 0.507936537f};
    /* Minus their log2, plus the constant term of the polynomial. */
    static const float logs[WIDTH] ALIGNED = {
        0.04439411441f, 0.1292830469f, 0.2094533687f, 0.2854022381f, 0.3575520964f, 0.4262647981f,
        0.4918530994f,  0.5545889354f, 0.6147099117f, 0.672425329f,  0.7279204711f, 0.7813597973f,
        0.8328900415f,  0.8826430847f, 0.9307374562f, 0.9772798782f};
    vector_t m = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
    __m512i sixteenth = _mm512_srli_epi32(_mm512_castps_si512(m), MANTISSA - 4); /* in 4 bits */
    vector_t c = _mm512_permutexvar_ps(sixteenth, _mm512_load_ps(inverses));
    vector_t r = _mm512_fmsub_ps(m, c, ALL(1));
    vector_t sum = _mm512_fmadd_ps(r, ALL(0.4812960981f), ALL(-0.7216789084f));
    sum = _mm512_fmadd_ps(sum, r, ALL(1.442694919f));
    sum = _mm512_fmadd_ps(sum, r, _mm512_permutexvar_ps(sixteenth, _mm512_load_ps(logs)));
    return _mm512_add_ps(sum, _mm512_sub_ps(_mm512_getexp_ps(x), exponent));
}

/* t - floor(t); 0 for an infinity. */
AVX512_INLINE vector_t fraction(vector_t t)
{
    return _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF);
}

/* 2^f for f in [0, 1]. */
AVX512_INLINE vector_t exp2_of_fraction(vector_t f)
{
    vector_t sum = _mm512_fmadd_ps(f, ALL(0.0002170225568f), ALL(0.00124396877f));
    sum = _mm512_fmadd_ps(sum, f, ALL(0.009678841018f));
    sum = _mm512_fmadd_ps(sum, f, ALL(0.05548334197f));
    sum = _mm512_fmadd_ps(sum, f, ALL(0.2402298363f));
    sum = _mm512_fmadd_ps(sum, f, ALL(0.6931469838f));
    return _mm512_fmadd_ps(sum, f, ALL(1));
}

/* M of the block whose models begin at xs[j] + at, as integers, where NaN is above infinity. */
AVX512_INLINE void find_top(registers_t *block, const job_t *job, int64_t at, int64_t count)
{
    const float *const *xs = job->xs;
    __m512i top[VECTORS];
    EACH top[i] = _mm512_setzero_si512();
    for (int64_t j = 0; j < job->models; j++) {
        if (job->models > FOLLOWED_STREAMS)
            NAME(prefetch)(xs[j] + at);
        EACH
        {
            __m512i x = _mm512_castps_si512(load(xs[j] + at, i, count));
            x = _mm512_and_si512(x, _mm512_set1_epi32(INT32_MAX));
            top[i] = _mm512_max_epi32(top[i], x);
        }
    }
    EACH
    {
        block->top[i] = _mm512_castsi512_ps(top[i]);
        block->exponent[i] = _mm512_max_ps(ALL(-200), _mm512_getexp_ps(block->top[i]));
        block->level[i] = block->total[i] = block->change[i] = ALL(0);
    }
}

AVX512_INLINE void set_level(registers_t *block)
{
    /* Any finite number does for M = 0. */
    EACH block->level[i] = _mm512_max_ps(ALL(-1), log2_from(block->exponent[i], block->top[i]));
}

/* Square-and-multiply, from the second highest bit of p down. */
AVX512_INLINE void add_odd(registers_t *block, const float *x, int64_t count, float a, int p)
{
    vector_t ratio[VECTORS], power[VECTORS];
    EACH
    {
        vector_t down = _mm512_sub_ps(ALL(0), block->exponent[i]);
        power[i] = ratio[i] = _mm512_scalef_ps(load(x, i, count), down);
    }
    for (int bit = 1 << (30 - __builtin_clz((unsigned)p)); bit; bit >>= 1) {
        EACH power[i] = _mm512_mul_ps(power[i], power[i]);
        if (p & bit)
            EACH power[i] = _mm512_mul_ps(power[i], ratio[i]);
    }
    EACH block->total[i] = _mm512_fmadd_ps(ALL(a), power[i], block->total[i]);
}

AVX512_INLINE void add_real(registers_t *block, const float *x, int64_t count, float a, float p)
{
    EACH
    {
        vector_t value = load(x, i, count);
        vector_t t = _mm512_mul_ps(ALL(p), log2_from(block->exponent[i], value));
        vector_t power = _mm512_scalef_ps(exp2_of_fraction(fraction(t)), t); /* rounds t down */
        block->total[i] = _mm512_fmadd_ps(turned_by(ALL(a), value), power, block->total[i]);
    }
}

/* The same relative to M, and the derivative. */
AVX512_INLINE void add_both(registers_t *block, const float *x, int64_t count, float a, float p)
{
    EACH
    {
        vector_t value = load(x, i, count);
        vector_t log = _mm512_sub_ps(log2_from(block->exponent[i], value), block->level[i]);
        log = _mm512_max_ps(ALL(-1e4f), log); /* so that 0 times the logarithm of 0 is 0 */
        vector_t t = _mm512_mul_ps(ALL(p), log);
        vector_t term = _mm512_scalef_ps(exp2_of_fraction(fraction(t)), t);
        term = _mm512_mul_ps(turned_by(ALL(a), value), term);
        block->total[i] = _mm512_add_ps(block->total[i], term);
        block->change[i] = _mm512_fmadd_ps(term, log, block->change[i]);
    }
}

/* The slope (see finish_both) from the mean and log2(|S|) / p. */
AVX512_INLINE vector_t slope_of(vector_t total, vector_t change, vector_t top, vector_t mean,
                                vector_t log, float p)
{
    vector_t growth = _mm512_sub_ps(_mm512_div_ps(change, total), log);
    vector_t slope = _mm512_mul_ps(_mm512_mul_ps(ALL(0.6931471806f / p), growth), mean);
    slope = _mm512_max_ps(_mm512_sub_ps(ALL(0), top), _mm512_min_ps(top, slope));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(total, ALL(0), _CMP_NEQ_UQ), slope);
}

/* S to the mean, which is cut at M, and dS/dp to the slope if that is wanted. */
AVX512_INLINE void finish_block(registers_t *block, float p, int sloped)
{
    EACH
    {
        vector_t total = block->total[i], top = block->top[i];
        vector_t log = _mm512_mul_ps(log2_from(ALL(0), total), ALL(1 / p));
        vector_t t = _mm512_add_ps(log, block->level[i]), f = fraction(t);
        vector_t whole = _mm512_add_ps(_mm512_sub_ps(t, f), block->exponent[i]);
        vector_t mean = _mm512_scalef_ps(exp2_of_fraction(f), whole);
        mean = turned_by(_mm512_min_ps(top, mean), total);
        if (sloped)
            block->change[i] = slope_of(total, block->change[i], top, mean, log, p);
        block->total[i] = mean;
    }
}

AVX512_INLINE void store_block(const vector_t *values, void *out, int64_t at, int64_t count)
{
    EACH _mm512_mask_storeu_ps((float *)out + at + i * WIDTH, lanes(i, count), values[i]);
}

AVX512_INLINE void power_mean_of_block(const job_t *job, int64_t at, int64_t count)
{
    const float *const *xs = job->xs;
    const float p = (float)job->p;
    registers_t block;
    find_top(&block, job, at, count);
    if (job->slope || (!job->odd && p > LARGEST_UNLEVELLED)) {
        set_level(&block);
        for (int64_t j = 0; j < job->models; j++)
            add_both(&block, xs[j] + at, count, (float)job->weights[j], p);
    } else if (job->odd) {
        for (int64_t j = 0; j < job->models; j++)
            add_odd(&block, xs[j] + at, count, (float)job->weights[j], job->odd);
    } else {
        for (int64_t j = 0; j < job->models; j++)
            add_real(&block, xs[j] + at, count, (float)job->weights[j], p);
    }
    if (job->slope) {
        finish_block(&block, p, 1);
        store_block(block.change, job->slope, at, count);
    } else {
        finish_block(&block, p, 0);
    }
    if (job->mean)
        store_block(block.total, job->mean, at, count);
}

AVX512 static void power_mean_avx512(const job_t *job, int64_t begin, int64_t end)
{
    for (; begin + BLOCK <= end; begin += BLOCK)
        power_mean_of_block(job, begin, BLOCK);
    if (begin < end)
        power_mean_of_block(job, begin, end - begin);
}
