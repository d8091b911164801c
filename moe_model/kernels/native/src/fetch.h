/* What a product has fetched from memory while it multiplies. */
#ifndef EXPERTMESH_FETCH_H
#define EXPERTMESH_FETCH_H

#define LINE_BYTES 64

/* What a thread reads after a task, as far as it can be known: the panels of another one. */
typedef struct {
    const void *panels;
    long panel_bytes;
} upcoming;

/* What the tiles of a block of inputs have fetched between them: of `panel_bytes` apart, each a line of every panel for
 * `num_tiles` lines that it reads. */
typedef struct {
    const char *at;
    long panel_bytes, num_tiles;
} fetching;

/* The part of tile `t`, of panels of which the tiles read `num_bytes` each. */
static inline fetching part_of_tile(upcoming next, long num_bytes, int t, int num_tiles) {
    const long lines = num_bytes / LINE_BYTES / num_tiles;
    return (fetching){(const char *)next.panels + t * lines * LINE_BYTES, next.panel_bytes, num_tiles};
}

static inline fetching from_panel(fetching part, long panel) {
    part.at += panel * part.panel_bytes;
    return part;
}

/* Fewer rows wait for memory whatever is done, and what the processor fetches by itself comes soonest. */
#define ROWS_THAT_FETCH 3

/* In a tile of `mr` rows and `np` panels, with its `part` and `left` bytes until the next line: `num_bytes` of each panel are
 * read here. */
#define FETCH(num_bytes)                                                                                     \
    if (mr >= ROWS_THAT_FETCH && (left -= (num_bytes)) <= 0) {                                               \
        left += part.num_tiles * LINE_BYTES;                                                                 \
        _Pragma("GCC unroll 4") for (int p = 0; p < np; p++) __builtin_prefetch(part.at + p * part.panel_bytes); \
        part.at += LINE_BYTES;                                                                               \
    }

#endif
