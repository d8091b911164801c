/* A frame's first 64 bytes, as frame.py packs them. */
#ifndef EXPERTMESH_FRAME_H
#define EXPERTMESH_FRAME_H

#include <stdint.h>

#define FRAME_VERSION 3
enum frame_kind { FRAME_CALL = 1, FRAME_REPLY = 2 };
enum frame_dtype { ROWS_F32 = 0, ROWS_BF16 = 1 };
enum frame_form { FORM_PAIRS = 0, FORM_SUM = 1 };

typedef struct {
    char magic[2];
    uint8_t version, kind, dtype, form, has_index, unused;
    uint64_t body_bytes, call_id, epoch;
    uint32_t layer, num_segments, num_rows, num_pairs, width, unused4; /* num_pairs of a reply: the weights' tag */
    double seconds;
} frame_header;

_Static_assert(sizeof(frame_header) == 64, "frame.py packs a header into 64 bytes");

/* Bytes between rows and segments, so that a body ends at a multiple of 8 but for what follows them. */
static inline uint64_t frame_padding(uint64_t rows_bytes, uint64_t segments_bytes) {
    return -(rows_bytes + segments_bytes) & 7;
}

#endif
