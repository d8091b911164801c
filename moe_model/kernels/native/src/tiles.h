/* Tiles: eight registers of up to 16 rows of up to 64 bytes, which are loaded, multiplied and stored whole. The assembler's
 * own words, as compilers' functions for them do not say that memory is read. A test has plain C in their place: TILES.
 *
 * A thread configures its tiles, which empties them, and releases them when its task is done: what is not released is
 * saved and restored at each switch of threads and in each signal's frame. */
#ifndef EXPERTMESH_TILES_H
#define EXPERTMESH_TILES_H

#include <stdint.h>

#define TILE_ROWS 16
#define TILE_ROW_BYTES 64
#define TILE_BYTES (TILE_ROWS * TILE_ROW_BYTES)

/* As the processor reads it. */
typedef struct {
    uint8_t palette; /* 1: all tiles have the largest size at most */
    uint8_t start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t num_rows[16];
} tile_config;

_Static_assert(sizeof(tile_config) == 64, "what the processor reads");

#ifdef TILES
#include TILES
#else
static inline void configure_tiles(const tile_config *config) { __asm__ volatile("ldtilecfg %0" ::"m"(*config) : "memory"); }
static inline void release_tiles(void) { __asm__ volatile("tilerelease" ::: "memory"); }

/* `t`, `sums`, `a` and `b` are the numbers of tiles, in digits. Rows are `stride` bytes apart. */
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t :::"memory")
#define TILE_LOAD(t, at, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(at), "r"((long)(stride)) : "memory")
#define TILE_STORE(t, at, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(at), "r"((long)(stride)) : "memory")

/* Adds to row r and column c of `sums` the products of row r of `a` and of what `b` has for c, a group of 4 bytes of each
 * row: two of bfloat16, or four bytes, signed ones in `a`, and unsigned or signed ones in `b`. */
#define TILE_DOT(instruction, sums, a, b) __asm__ volatile(instruction " %%tmm" #b ", %%tmm" #a ", %%tmm" #sums ::: "memory")
#define TILE_DOT_BF16(sums, a, b) TILE_DOT("tdpbf16ps", sums, a, b)
#define TILE_DOT_UNSIGNED(sums, a, b) TILE_DOT("tdpbsud", sums, a, b)
#define TILE_DOT_SIGNED(sums, a, b) TILE_DOT("tdpbssd", sums, a, b)
#endif

#endif
