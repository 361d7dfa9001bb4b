/* The kernels of _native.c for one floating-point type; included once for each.
 *
 * Set before: REAL, BITS and SIGNED (integers as wide), NAME(x) (x with the suffix of the type),
 * MANTISSA (its bits), BIAS (of the exponent), and LOG2_SERIES and EXP2_SERIES (see below).
 *
 * The work is done on tiles of at most TILE coordinates, whose scratch stays in the cache, and in
 * them on blocks of BLOCK coordinates without branches; the last block is filled up with zeros. So
 * every coordinate gets the same operations wherever it stands, and results depend neither on the
 * number of threads nor on where a tensor was cut. Sums run over the models in the given order.
 */

#define ONE ((BITS)BIAS << MANTISSA)
#define MAGNITUDE_MASK ((BITS)-1 >> 1)
#define SIGN_MASK (~MAGNITUDE_MASK)
#define FRACTION_MASK (((BITS)1 << MANTISSA) - 1)
#define EXPONENT_MASK (MAGNITUDE_MASK & ~FRACTION_MASK)
#define POWER_OF_2(e) NAME(real)((BITS)(BIAS + (e)) << MANTISSA)

INLINE BITS NAME(bits)(REAL x)
{
    BITS b;
    memcpy(&b, &x, sizeof b);
    return b;
}

INLINE REAL NAME(real)(BITS b)
{
    REAL x;
    memcpy(&x, &b, sizeof x);
    return x;
}

INLINE REAL NAME(magnitude)(REAL x)
{
    return NAME(real)(NAME(bits)(x) & MAGNITUDE_MASK);
}

/* A value >= 0 with the sign of another. */
INLINE REAL NAME(signed_as)(REAL value, REAL sign)
{
    return NAME(real)(NAME(bits)(value) | (NAME(bits)(sign) & SIGN_MASK));
}

/* log2 x of a normal x > 0; something below 2 - BIAS for denormal numbers and 0.
 *
 * x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), which is fdlibm's reduction, and
 * log2(1 + f) = f * (polynomial in f), so that the relative error stays small around x = 1.
 */
INLINE REAL NAME(log2)(REAL x)
{
    static const REAL series[] = LOG2_SERIES;
    const BITS root = NAME(bits)((REAL)0.70710678118654752440);
    const REAL offset = POWER_OF_2(MANTISSA);
    BITS shifted = NAME(bits)(x) + (ONE - root);
    REAL f = NAME(real)((shifted & FRACTION_MASK) + root) - 1;
    REAL sum = series[COUNT(series) - 1];
    for (int i = (int)COUNT(series) - 2; i >= 0; i--)
        sum = sum * f + series[i];
    /* The exponent in the lowest bits of a float: no instruction set lacks this conversion. */
    REAL exponent = NAME(real)((shifted >> MANTISSA) | NAME(bits)(offset)) - (offset + BIAS);
    return f * sum + exponent;
}

/* 2^t for t < BIAS; 0 where that would not be a normal number. */
INLINE REAL NAME(exp2)(REAL t)
{
    static const REAL series[] = EXP2_SERIES;
    /* Adding this rounds t to an integer, in two's complement in the lowest bits of the sum. */
    const REAL rounder = POWER_OF_2(MANTISSA) + POWER_OF_2(MANTISSA - 1);
    REAL rounded = t + rounder;
    REAL f = t - (rounded - rounder);
    REAL sum = series[COUNT(series) - 1];
    for (int i = (int)COUNT(series) - 2; i >= 0; i--)
        sum = sum * f + series[i];
    REAL power = NAME(real)(NAME(bits)(f * sum + 1) + (NAME(bits)(rounded) << MANTISSA));
    return t < 1 - BIAS ? 0 : power;
}

/* log2 x for all x >= 0: a number below -BIAS for 0. */
INLINE REAL NAME(log2_of_any)(REAL x)
{
    const REAL lift = POWER_OF_2(MANTISSA + 1);
    int tiny = x < POWER_OF_2(2 - BIAS);
    return NAME(log2)(tiny ? x * lift : x) - (tiny ? MANTISSA + 1 : 0);
}

/* `count` values at x; if they are no whole blocks, a copy that is filled up with zeros. */
INLINE const REAL *NAME(whole)(const REAL *x, int64_t count, int64_t width, REAL *copy)
{
    if (count == width)
        return x;
    memcpy(copy, x, (size_t)count * sizeof *x);
    memset(copy + count, 0, (size_t)(width - count) * sizeof *x);
    return copy;
}

/* Ask for the block that the next tile will read while this tile is computed. */
INLINE void NAME(prefetch)(const REAL *x)
{
    for (size_t i = 0; i < BLOCK; i += 64 / sizeof *x)
        __builtin_prefetch(x + TILE + i, 0, 2);
}

CLONES static void NAME(mean)(const job_t *job, int64_t begin, int64_t end)
{
    ALIGNED REAL total[TILE], copy[TILE];
    const REAL *const *xs = job->xs;

    for (int64_t at = begin; at < end; at += TILE) {
        int64_t count = end - at < TILE ? end - at : TILE, width = WHOLE_BLOCKS(count);
        for (int64_t i = 0; i < width; i++)
            total[i] = -(REAL)0; /* the only number that changes none when added */
        for (int64_t j = 0; j < job->models; j++) {
            const REAL *x = NAME(whole)(xs[j] + at, count, width, copy);
            const REAL a = (REAL)job->weights[j];
            for (int64_t b = 0; b < width; b += BLOCK) {
                NAME(prefetch)(x + b);
                for (int i = 0; i < BLOCK; i++)
                    total[b + i] += a * x[b + i];
            }
        }
        memcpy((REAL *)job->mean + at, total, (size_t)count * sizeof *total);
    }
}

/* What is known of a block's coordinates; the x_j themselves are read twice.
 *
 * top: bits of M = max |x_j|; compared as integers, NaN is above infinity.
 * scale: the power of 2 that brings M into [1, 4), or as near as it gets if M is denormal.
 * level: log2(scale M).
 * unit: M, or 1 / scale if the powers are products.
 * total: S = sum of a_j sgn(x_j) |x_j / unit|^p.
 * change: sum of the same terms times log2(|x_j| / M): dS/dp in units of ln 2.
 */
typedef struct {
    ALIGNED SIGNED top[BLOCK];
    ALIGNED REAL scale[BLOCK], level[BLOCK], unit[BLOCK], total[BLOCK], change[BLOCK];
} NAME(block_t);

INLINE void NAME(raise_top)(NAME(block_t) *restrict block, const REAL *restrict x)
{
    for (int i = 0; i < BLOCK; i++) {
        SIGNED b = (SIGNED)(NAME(bits)(x[i]) & MAGNITUDE_MASK);
        block->top[i] = b > block->top[i] ? b : block->top[i];
    }
}

/* Scaling by a power of 2 is exact: equal ratios of inputs give equal bits at every magnitude. */
INLINE void NAME(set_scale)(NAME(block_t) *block)
{
    const SIGNED lowest = (SIGNED)1 << MANTISSA, highest = (SIGNED)(2 * BIAS - 1) << MANTISSA;
    for (int i = 0; i < BLOCK; i++) {
        SIGNED power = block->top[i] & (SIGNED)EXPONENT_MASK;
        power = power > lowest ? power : lowest;
        power = power < highest ? power : highest;
        block->scale[i] = NAME(real)(2 * ONE - (BITS)power);
        block->unit[i] = NAME(real)((BITS)power);
    }
}

INLINE void NAME(set_level)(NAME(block_t) *block)
{
    for (int i = 0; i < BLOCK; i++) {
        block->unit[i] = NAME(real)((BITS)block->top[i]);
        block->level[i] = NAME(log2)(block->unit[i] * block->scale[i]);
    }
}

INLINE void NAME(add_cube)(NAME(block_t) *restrict block, const REAL *restrict x, REAL a)
{
    for (int i = 0; i < BLOCK; i++) {
        REAL ratio = x[i] * block->scale[i];
        block->total[i] += a * (ratio * ratio * ratio);
    }
}

/* Square-and-multiply, from the second highest bit of p down. */
INLINE void NAME(add_odd)(NAME(block_t) *restrict block, const REAL *restrict x, REAL a, int p)
{
    ALIGNED REAL ratio[BLOCK], power[BLOCK];
    for (int i = 0; i < BLOCK; i++)
        power[i] = ratio[i] = x[i] * block->scale[i];
    for (int bit = 1 << (30 - __builtin_clz((unsigned)p)); bit; bit >>= 1) {
        if (p & bit)
            for (int i = 0; i < BLOCK; i++)
                power[i] *= power[i] * ratio[i];
        else
            for (int i = 0; i < BLOCK; i++)
                power[i] *= power[i];
    }
    for (int i = 0; i < BLOCK; i++)
        block->total[i] += a * power[i];
}

INLINE void NAME(add_real)(NAME(block_t) *restrict block, const REAL *restrict x, REAL a, REAL p)
{
    for (int i = 0; i < BLOCK; i++) {
        REAL log = NAME(log2)(NAME(magnitude)(x[i]) * block->scale[i]) - block->level[i];
        block->total[i] += a * NAME(signed_as)(NAME(exp2)(p * log), x[i]);
    }
}

INLINE void NAME(add_both)(NAME(block_t) *restrict block, const REAL *restrict x, REAL a, REAL p)
{
    for (int i = 0; i < BLOCK; i++) {
        REAL log = NAME(log2)(NAME(magnitude)(x[i]) * block->scale[i]) - block->level[i];
        REAL term = a * NAME(signed_as)(NAME(exp2)(p * log), x[i]);
        block->total[i] += term;
        block->change[i] += term * log;
    }
}

/* S to the mean, unit |S|^(1/p); it is cut at M, past which rounding may carry it. */
INLINE void NAME(finish)(NAME(block_t) *block, REAL p)
{
    const REAL by_p = 1 / p;
    for (int i = 0; i < BLOCK; i++) {
        REAL size = NAME(magnitude)(block->total[i]), top = NAME(real)((BITS)block->top[i]);
        REAL mean = NAME(exp2)(NAME(log2_of_any)(size) * by_p) * block->unit[i];
        mean = mean < top ? mean : top;
        mean = size > 0 ? mean : 0;
        /* What is added is 0, or NaN where an input is not finite. */
        block->total[i] = NAME(signed_as)(mean, block->total[i]) + (top - top);
    }
}

/* The same and the derivative, mean (S'/(p S) - ln|S|/p^2), which is cut at +-M; 0 if S = 0. */
INLINE void NAME(finish_both)(NAME(block_t) *block, REAL p)
{
    const REAL by_p = 1 / p, ln2 = (REAL)0.69314718055994530942;
    for (int i = 0; i < BLOCK; i++) {
        REAL total = block->total[i], top = NAME(real)((BITS)block->top[i]);
        REAL size = NAME(magnitude)(total), log = NAME(log2_of_any)(size) * by_p;
        REAL mean = NAME(exp2)(log) * block->unit[i];
        mean = mean < top ? mean : top;
        mean = NAME(signed_as)(size > 0 ? mean : 0, total);
        REAL slope = ln2 * by_p * (block->change[i] / total - log) * mean;
        slope = slope < top ? slope : top;
        slope = slope > -top ? slope : -top;
        slope = size > 0 ? slope : 0;
        block->total[i] = mean + (top - top);
        block->change[i] = slope + (top - top);
    }
}

INLINE void NAME(add)(NAME(block_t) *block, const REAL *x, REAL a, const job_t *job)
{
    if (job->slope)
        NAME(add_both)(block, x, a, (REAL)job->p);
    else if (job->odd == 3)
        NAME(add_cube)(block, x, a);
    else if (job->odd)
        NAME(add_odd)(block, x, a, job->odd);
    else
        NAME(add_real)(block, x, a, (REAL)job->p);
}

/* Write a block's `count` coordinates from `at` on. */
INLINE void NAME(store)(NAME(block_t) *block, const job_t *job, int64_t at, int64_t count)
{
    size_t bytes = sizeof(REAL) * (size_t)(count < BLOCK ? count : BLOCK);
    if (job->slope) {
        NAME(finish_both)(block, (REAL)job->p);
        memcpy((REAL *)job->slope + at, block->change, bytes);
    } else {
        NAME(finish)(block, (REAL)job->p);
    }
    if (job->mean)
        memcpy((REAL *)job->mean + at, block->total, bytes);
}

/* The first input as it is, in `mean`; raises `special` if there is a NaN or an infinity. */
CLONES static void NAME(copy)(const job_t *job, int64_t begin, int64_t end)
{
    const REAL *x = *(const REAL *const *)job->xs;

    for (int64_t at = begin; at < end; at += TILE) {
        int64_t count = end - at < TILE ? end - at : TILE;
        BITS found = 0;
        for (int64_t i = at; i < at + count; i++)
            found |= (NAME(bits)(x[i]) & EXPONENT_MASK) == EXPONENT_MASK;
        memcpy((REAL *)job->mean + at, x + at, (size_t)count * sizeof *x);
        if (found)
            __atomic_store_n(job->special, 1, __ATOMIC_RELAXED);
    }
}

CLONES static void NAME(power_mean)(const job_t *job, int64_t begin, int64_t end)
{
    NAME(block_t) tile[TILE / BLOCK];
    ALIGNED REAL copy[TILE];
    const REAL *const *xs = job->xs;

    for (int64_t at = begin; at < end; at += TILE) {
        int64_t count = end - at < TILE ? end - at : TILE, width = WHOLE_BLOCKS(count);
        int64_t blocks = width / BLOCK;
        memset(tile, 0, (size_t)blocks * sizeof *tile);
        for (int64_t j = 0; j < job->models; j++) {
            const REAL *x = NAME(whole)(xs[j] + at, count, width, copy);
            for (int64_t b = 0; b < blocks; b++)
                NAME(raise_top)(&tile[b], x + b * BLOCK);
        }
        for (int64_t b = 0; b < blocks; b++) {
            NAME(set_scale)(&tile[b]);
            if (job->slope || !job->odd)
                NAME(set_level)(&tile[b]);
        }
        for (int64_t j = 0; j < job->models; j++) {
            const REAL *x = NAME(whole)(xs[j] + at, count, width, copy);
            for (int64_t b = 0; b < blocks; b++, x += BLOCK) {
                NAME(prefetch)(x);
                NAME(add)(&tile[b], x, (REAL)job->weights[j], job);
            }
        }
        for (int64_t b = 0; b < blocks; b++)
            NAME(store)(&tile[b], job, at + b * BLOCK, count - b * BLOCK);
    }
}

CLONES static void NAME(dots)(const job_t *job, int64_t begin, int64_t end)
{
    double sums[3][LANES] = {{0}};
    const REAL *const *xs = job->xs;

    for (int64_t at = begin; at < end; at += LANES) {
        REAL copies[2][LANES];
        int64_t count = end - at < LANES ? end - at : LANES;
        const REAL *x = NAME(whole)(xs[0] + at, count, LANES, copies[0]);
        const REAL *y = NAME(whole)(xs[1] + at, count, LANES, copies[1]);
        for (int i = 0; i < LANES; i++) {
            sums[0][i] += (double)x[i] * (double)y[i];
            sums[1][i] += (double)x[i] * (double)x[i];
            sums[2][i] += (double)y[i] * (double)y[i];
        }
    }
    for (int which = 0; which < 3; which++) {
        double sum = 0;
        for (int i = 0; i < LANES; i++)
            sum += sums[which][i];
        ((double *)job->mean)[which] = sum;
    }
}

#undef ONE
#undef MAGNITUDE_MASK
#undef SIGN_MASK
#undef FRACTION_MASK
#undef EXPONENT_MASK
#undef POWER_OF_2
