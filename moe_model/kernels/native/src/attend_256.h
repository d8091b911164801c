/* Attention with eight lanes, as sums are held. */
#define W HELD8
#define W_LANES 8
#define W_LOAD LOAD_HELD
#define W_STORE STORE_HELD
#define W_LOAD_BF16 LOAD_HELD_BF16
#define W_SPLAT SPLAT_HELD
#define W_FMA FMA_HELD
#define W_SUM(v) SUM_OF_FOUR(v, v, v, v)[0]
#define W_SUM_OF_FOUR SUM_OF_FOUR
#define QUERIES 2
