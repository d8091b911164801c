/* What sets have in common whose eight lanes are held as one vector, for rows_impl.h. */
#define LESS8(a, b) ((a) < (b))
#define HELD8 f32x8
#define HOLD(v) (v)
#define LANES8(held) (held)
#define LOAD_HELD load_f32x8
#define STORE_HELD(at, held) memcpy(at, &(held), sizeof(held))
#define SPLAT_HELD SPLAT8
#define FMA_HELD FMA8
