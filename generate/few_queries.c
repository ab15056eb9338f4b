/* Attention of a few queries to the bfloat16 keys and values that are kept; see few_queries.py.

   Compiled with WIDTH, numbers in a head, a multiple of 2 * LANES, and TOKENS, the longest sequence. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define VECTORS (WIDTH / LANES)
#define TOGETHER 4 /* queries that meet a key or value while it is at hand */
#define LINE 32    /* numbers in a line of the cache */
#define SUMS 8     /* of products, that are added up together */
#define ROOM (TOKENS / LANES * LANES + 2 * LANES) /* of scores: what is computed beside them is written over */
#define UNSEEN -1e30f

typedef float lanes __attribute__((vector_size(4 * LANES), may_alias));
typedef int32_t words __attribute__((vector_size(4 * LANES)));

#define ALWAYS static inline __attribute__((always_inline))
#if defined(__clang__) || __GNUC__ > 11
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (words){__VA_ARGS__})
#endif
#define PAIRS(a, b) (PICK(a, b, 0, 8, 2, 10, 4, 12, 6, 14) + PICK(a, b, 1, 9, 3, 11, 5, 13, 7, 15))
#define FOURS(a, b) (PICK(a, b, 0, 1, 8, 9, 4, 5, 12, 13) + PICK(a, b, 2, 3, 10, 11, 6, 7, 14, 15))
#define EIGHTS(a, b) (PICK(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + PICK(a, b, 4, 5, 6, 7, 12, 13, 14, 15))

/* 2 * LANES numbers, those at even places and those at odd ones: two halves of a word each */
struct both {
    lanes even, odd;
};

ALWAYS struct both widened(const uint16_t *from) {
    words found;
    memcpy(&found, from, sizeof found);
    return (struct both){(lanes)(found << 16), (lanes)(found & (int32_t)0xffff0000)};
}

/* to the nearest, ties to the even one */
ALWAYS uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* the sums of eight, each over its lanes */
ALWAYS lanes sums(const lanes *all) {
    const lanes low = FOURS(PAIRS(all[0], all[1]), PAIRS(all[2], all[3]));
    const lanes high = FOURS(PAIRS(all[4], all[5]), PAIRS(all[6], all[7]));
    return EIGHTS(low, high);
}

ALWAYS lanes larger(lanes a, lanes b) {
    const words pick = a > b;
    return (lanes)(((words)a & pick) | ((words)b & ~pick));
}

/* e to the power of numbers up to 0; 0 for those below -87. Cephes' expf: a power of 2, and a polynomial for the rest. */
ALWAYS lanes exponential(lanes x) {
    const lanes magic = {12582912, 12582912, 12582912, 12582912, 12582912, 12582912, 12582912, 12582912}; /* 1.5 * 2^23 */
    const words counts = x > -87;
    const lanes shifted = x * 1.44269504f + magic, whole = shifted - magic;
    const lanes r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1;
    return (lanes)(((words)y + ((words)shifted << 23)) & counts); /* the magic number's own bits fall off */
}

struct kept {
    const uint16_t *keys, *values; /* of one head: (n, WIDTH) */
    int64_t n;
};

/* Have a value on its way to the cache. */
ALWAYS void fetch(const uint16_t *from) {
    for (int c = 0; c < WIDTH; c += LINE) __builtin_prefetch(from + c);
}

/* scores[i][first + j] = q[i] . keys[j], for `count` queries (a constant) and n keys */
ALWAYS void score(float (*scores)[ROOM], int64_t first, struct both (*q)[VECTORS / 2], struct kept kept, const int count) {
    const uint16_t *keys = kept.keys;
    const int64_t n = kept.n;
    const int some = SUMS / count;
    for (int64_t j = 0; j < n; j += some) {
        lanes all[SUMS] = {0};
        for (int k = 0; k < some; k++) {
            const int64_t at = j + k < n ? j + k : n - 1;
            fetch(kept.values + at * WIDTH);
            for (int c = 0; c < VECTORS / 2; c++) {
                const struct both key = widened(keys + at * WIDTH + 2 * c * LANES);
                for (int i = 0; i < count; i++) {
                    all[i * some + k] += q[i][c].even * key.even;
                    all[i * some + k] += q[i][c].odd * key.odd;
                }
            }
        }
        const lanes found = sums(all);
        for (int i = 0; i < count; i++)
            for (int k = 0; k < some; k++) scores[i][first + j + k] = found[i * some + k];
    }
}

/* y[i] += the sum of weights[i][first + j] * values[j] */
ALWAYS void gather(struct both (*y)[VECTORS / 2], float (*weights)[ROOM], int64_t first, const uint16_t *values, int64_t n,
                   const int count) {
    const int some = count > 2 ? 1 : 4 / count; /* at once, so that registers hold all sums */
    for (int from = 0; from < VECTORS / 2; from += some) {
        struct both all[TOGETHER][4] = {0};
        for (int64_t j = 0; j < n; j++)
            for (int c = 0; c < some && from + c < VECTORS / 2; c++) {
                const struct both value = widened(values + j * WIDTH + 2 * (from + c) * LANES);
                for (int i = 0; i < count; i++) {
                    all[i][c].even += weights[i][first + j] * value.even;
                    all[i][c].odd += weights[i][first + j] * value.odd;
                }
            }
        for (int i = 0; i < count; i++)
            for (int c = 0; c < some && from + c < VECTORS / 2; c++) {
                y[i][from + c].even += all[i][c].even;
                y[i][from + c].odd += all[i][c].odd;
            }
    }
}

/* Softmax of the first `seen` of n scores; behind them is room for a vector. */
ALWAYS void weigh(float *scores, int64_t seen, int64_t n) {
    lanes *all = (lanes *)scores, top = {UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN}, total = {0};
    const int64_t vectors = (seen + LANES - 1) / LANES;
    for (int64_t j = seen; j < vectors * LANES; j++) scores[j] = UNSEEN;
    for (int64_t v = 0; v < vectors; v++) top = larger(all[v], top);
    float most = top[0], sum = 0;
    for (int lane = 1; lane < LANES; lane++) most = top[lane] > most ? top[lane] : most;
    for (int64_t v = 0; v < vectors; v++) total += all[v] = exponential(all[v] - most);
    for (int lane = 0; lane < LANES; lane++) sum += total[lane];
    for (int64_t v = 0; v < vectors; v++) all[v] /= sum;
    for (int64_t j = seen; j < n; j++) scores[j] = 0;
}

/* The last `count` of what is kept ask. Rows of q and y are `row` and `wide` numbers apart. */
ALWAYS void ask(float *y, int64_t wide, const float *q, int64_t row, struct kept before, struct kept own,
                const uint8_t *holes, const int count) {
    float scores[TOGETHER][ROOM] __attribute__((aligned(4 * LANES)));
    struct both query[TOGETHER][VECTORS / 2], found[TOGETHER][VECTORS / 2] = {0};
    const float scale = 1 / sqrtf(WIDTH);
    for (int i = 0; i < count; i++)
        for (int c = 0; c < VECTORS / 2; c++)
            for (int lane = 0; lane < LANES; lane++) {
                query[i][c].even[lane] = scale * q[i * row + 2 * (c * LANES + lane)];
                query[i][c].odd[lane] = scale * q[i * row + 2 * (c * LANES + lane) + 1];
            }
    score(scores, 0, query, before, count);
    score(scores, before.n, query, own, count);
    for (int i = 0; i < count; i++) {
        const int64_t place = own.n - count + i;
        for (int64_t j = 0; holes && j < place; j++)
            if (holes[j]) scores[i][before.n + j] = UNSEEN;
        weigh(scores[i], before.n + place + 1, before.n + own.n);
    }
    gather(found, scores, 0, before.values, before.n, count);
    gather(found, scores, before.n, own.values, own.n, count);
    for (int i = 0; i < count; i++)
        for (int c = 0; c < VECTORS / 2; c++)
            for (int lane = 0; lane < LANES; lane++) {
                y[i * wide + 2 * (c * LANES + lane)] = found[i][c].even[lane];
                y[i * wide + 2 * (c * LANES + lane) + 1] = found[i][c].odd[lane];
            }
}

/* y (batch * count, heads * WIDTH) from qkv (batch * count, 3 * heads * WIDTH).

   keys, values: of the sequences, `batch_step` and `head_step` numbers apart; those of qkv are put at starts[b].
   before_...: (batch / sharing, heads, before, WIDTH), which `sharing` sequences in a row have in common.
   holes: of the sequences' own tokens, those that no other sees; or null. */
void attend_few(float *y, const float *qkv, uint16_t *keys, uint16_t *values, int64_t batch_step, int64_t head_step,
                const uint16_t *before_keys, const uint16_t *before_values, int64_t before, int64_t sharing,
                const int64_t *starts, const uint8_t *holes, int64_t batch, int64_t heads, int64_t count) {
    const int64_t wide = heads * WIDTH;
    /* heads outside: what sequences have in common stays in the cache from one to the next */
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t h = 0; h < heads; h++)
        for (int64_t b = 0; b < batch; b++) {
            const int64_t place = b * batch_step + h * head_step, start = starts[b];
            const float *from = qkv + b * count * 3 * wide + h * WIDTH;
            for (int64_t i = 0; i < count; i++)
                for (int64_t c = 0; c < WIDTH; c++) {
                    keys[place + (start + i) * WIDTH + c] = rounded(from[(3 * i + 1) * wide + c]);
                    values[place + (start + i) * WIDTH + c] = rounded(from[(3 * i + 2) * wide + c]);
                }
            const int64_t shared = (b / sharing * heads + h) * before * WIDTH;
            const struct kept first = {before_keys + shared, before_values + shared, before};
            for (int64_t i = 0; i < count; i += TOGETHER) {
                float *to = y + (b * count + i) * wide + h * WIDTH;
                const float *q = from + 3 * i * wide;
                const int64_t left = count - i, some = left < TOGETHER ? left : TOGETHER;
                const struct kept own = {keys + place, values + place, start + i + some};
                switch (some) {
                    case 1: ask(to, wide, q, 3 * wide, first, own, holes, 1); break;
                    case 2: ask(to, wide, q, 3 * wide, first, own, holes, 2); break;
                    case 3: ask(to, wide, q, 3 * wide, first, own, holes, 3); break;
                    default: ask(to, wide, q, 3 * wide, first, own, holes, TOGETHER);
                }
            }
        }
}
