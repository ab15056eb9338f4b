/* Attention of a few queries to the bfloat16 keys and values that are kept; see few_queries.py.

   Compiled with WIDTH, numbers in a head, a multiple of LANES, and TOKENS, the longest sequence. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define VECTORS (WIDTH / LANES)
#define TOGETHER 4 /* queries that meet a key or value while it is at hand */
#define REGISTERS 8 /* sums that are held while values pass by */
#define UNSEEN -1e30f

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

#define ALWAYS static inline __attribute__((always_inline))

ALWAYS lanes widened(const uint16_t *from) {
    halves found;
    memcpy(&found, from, sizeof found);
    return (lanes)(__builtin_convertvector(found, words) << 16);
}

/* to the nearest, ties to the even one */
ALWAYS uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

ALWAYS float sum(lanes all) {
    float total = 0;
    for (int lane = 0; lane < LANES; lane++) total += all[lane];
    return total;
}

/* scores[i][first + j] = q[i] . keys[j], for `count` queries (a constant) and n keys */
ALWAYS void score(float (*scores)[TOKENS], int64_t first, lanes (*q)[VECTORS], const uint16_t *keys, int64_t n,
                  const int count) {
    for (int64_t j = 0; j < n; j++) {
        lanes all[TOGETHER] = {0};
        for (int c = 0; c < VECTORS; c++) {
            const lanes key = widened(keys + j * WIDTH + c * LANES);
            for (int i = 0; i < count; i++) all[i] += q[i][c] * key;
        }
        for (int i = 0; i < count; i++) scores[i][first + j] = sum(all[i]);
    }
}

/* y[i] += the sum of weights[i][first + j] * values[j] */
ALWAYS void gather(lanes (*y)[VECTORS], float (*weights)[TOKENS], int64_t first, const uint16_t *values, int64_t n,
                   const int count) {
    const int most = REGISTERS / count;
    for (int from = 0; from < VECTORS; from += most) {
        lanes all[TOGETHER][REGISTERS] = {0};
        const int some = VECTORS - from < most ? VECTORS - from : most;
        for (int64_t j = 0; j < n; j++)
            for (int c = 0; c < some; c++) {
                const lanes value = widened(values + j * WIDTH + (from + c) * LANES);
                for (int i = 0; i < count; i++) all[i][c] += weights[i][first + j] * value;
            }
        for (int i = 0; i < count; i++)
            for (int c = 0; c < some; c++) y[i][from + c] += all[i][c];
    }
}

struct kept {
    const uint16_t *keys, *values; /* of one head: (n, WIDTH) */
    int64_t n;
};

/* The last `count` of what is kept ask. Rows of q and y are `row` and `wide` numbers apart. */
ALWAYS void ask(float *y, int64_t wide, const float *q, int64_t row, struct kept before, struct kept own,
                const uint8_t *holes, const int count) {
    float scores[TOGETHER][TOKENS];
    lanes query[TOGETHER][VECTORS], found[TOGETHER][VECTORS] = {0};
    const float scale = 1 / sqrtf(WIDTH);
    for (int i = 0; i < count; i++) {
        memcpy(query[i], q + i * row, sizeof query[i]);
        for (int c = 0; c < VECTORS; c++) query[i][c] *= scale;
    }
    score(scores, 0, query, before.keys, before.n, count);
    score(scores, before.n, query, own.keys, own.n, count);
    for (int i = 0; i < count; i++) {
        const int64_t place = own.n - count + i, seen = before.n + place + 1;
        float *mine = scores[i], top = UNSEEN, total = 0;
        for (int64_t j = 0; holes && j < place; j++)
            if (holes[j]) mine[before.n + j] = UNSEEN;
        for (int64_t j = 0; j < seen; j++) top = mine[j] > top ? mine[j] : top;
        for (int64_t j = 0; j < seen; j++) total += mine[j] = expf(mine[j] - top);
        for (int64_t j = 0; j < seen; j++) mine[j] /= total;
        for (int64_t j = seen; j < before.n + own.n; j++) mine[j] = 0;
    }
    gather(found, scores, 0, before.values, before.n, count);
    gather(found, scores, before.n, own.values, own.n, count);
    for (int i = 0; i < count; i++) memcpy(y + i * wide, found[i], sizeof found[i]);
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
