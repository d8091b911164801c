#include "program.h"

#include <time.h>

/* Multiplications, or values moved, below which one thread is done before another one has begun. */
#define WORTH_THREADS 30000L
/* Heads that attend together keep their scores of one row, as far as they fit; how many do shows in no bit. */
#define MOST_HEADS MAX_HEADS_AT_ONCE
#define MOST_SCORES (1L << 20)

static long at_most(long a, long b) { return a < b ? a : b; }
static long at_least(long a, long b) { return a > b ? a : b; }
/* Bytes to the next line of the cache. */
static long whole_lines(long bytes) { return (bytes + 63) & ~63L; }

static long buffer_bytes(const program *p, long buffer, long num_tokens) {
    return whole_lines(4 * p->width_B[buffer] * num_tokens);
}

long buffer_offset(const program *p, long num_tokens, long buffer) {
    long bytes = 0;
    for (long b = STREAM + 1; b < buffer; b++) bytes += buffer_bytes(p, b, num_tokens);
    return bytes;
}

long program_arena_bytes(const program *p, long num_tokens) { return buffer_offset(p, num_tokens, p->num_buffers); }

/* The first row of a place; NULL for none. */
static float *rows_at(const program *p, const program_step *s, place at) {
    if (at.buffer == NOWHERE) return NULL;
    if (at.buffer == STREAM) return s->stream + at.at;
    return (float *)(s->arena + buffer_offset(p, s->num_tokens, at.buffer)) + at.at;
}

static int threads_for(const program_step *s, long work) { return work < WORTH_THREADS ? 1 : s->num_threads; }

static void do_linear(const program *p, const program_step *s, const linear_step *i) {
    linear_op op = {
        .kernels = p->kernels,
        .w = i->w,
        .x = rows_at(p, s, i->x),
        .num_rows = s->num_tokens,
        .stride = p->width_B[i->x.buffer],
        .norm = i->norm,
        .activation = i->activation,
        .residual = i->y.buffer == STREAM ? s->stream : NULL,
        .y = rows_at(p, s, i->y),
        .scratch = s->scratch,
    };
    run_linear(&op, threads_for(s, s->num_tokens * i->w.num_in * i->w.num_out));
}

static void do_head_linear(const program *p, const program_step *s, const head_linear_step *i) {
    head_linear_op op = {
        .kernels = p->kernels,
        .w = i->w,
        .x = rows_at(p, s, i->x),
        .num_rows = s->num_tokens,
        .num_heads = i->num_heads,
        .stride = p->width_B[i->x.buffer],
        .apart = i->apart,
        .y = rows_at(p, s, i->y),
        .scratch = s->scratch,
    };
    run_head_linear(&op, threads_for(s, s->num_tokens * i->num_heads * i->w.num_in * i->w.num_out));
}

static void do_norm(const program *p, const program_step *s, const norm_step *i) {
    const norm_op op = {
        p->kernels.rows,       i->norm,      rows_at(p, s, i->x),      rows_at(p, s, i->y),
        s->num_tokens,         i->num_heads, p->width_B[i->x.buffer], p->width_B[i->y.buffer],
    };
    run_norm(&op, threads_for(s, s->num_tokens * i->num_heads * i->norm.width));
}

static void do_rotate(const program *p, const program_step *s, const rotate_step *i) {
    rotary_op op = {
        .kernels = p->kernels,
        .how = i->how,
        .x = rows_at(p, s, i->x),
        .num_rows = s->num_tokens,
        .stride = p->width_B[i->x.buffer],
        .num_heads = i->num_heads,
        .head_dim = i->head_dim,
        .position_R = s->position_T,
    };
    run_rotary(&op, threads_for(s, s->num_tokens * (i->num_heads + 8) * i->how.dim));
}

/* Tokens that a row of the layer sees at most. */
static long most_seen(const program_step *s, const attend_step *i) {
    const long longest = s->groups[s->cache->layers[i->layer].group].longest;
    return i->window > 0 ? at_most(i->window, longest) : longest;
}

static long room_for(long seen) { return at_least(seen, at_most(MOST_HEADS * seen, MOST_SCORES)); }

static void do_attend(const program *p, const program_step *s, const attend_step *i) {
    const layer_cache *cache = &s->cache->layers[i->layer];
    const group_context *group = &s->groups[cache->group];
    const int is_latent = i->v.buffer == NOWHERE;
    attention_op op = {
        .kernels = p->kernels,
        .source =
            {
                .q = rows_at(p, s, i->q),
                .q_stride = p->width_B[i->q.buffer],
                .keys = cache->keys,
                .values = is_latent ? cache->keys : cache->values,
                .cache_is_bf16 = cache->is_bf16,
                .block_size = s->cache->block_size,
                .num_heads = i->num_heads,
                .num_kv_heads = i->num_kv_heads,
                .head_dim = i->head_dim,
                .value_width = i->value_width,
                .value_stride = is_latent ? i->head_dim : i->value_width,
                .scale = i->scale,
                .sinks_H = i->sinks_H,
            },
        .k = rows_at(p, s, i->k),
        .v = rows_at(p, s, i->v),
        .k_stride = p->width_B[i->k.buffer],
        .v_stride = is_latent ? 0 : p->width_B[i->v.buffer],
        .keys = cache->keys,
        .values = cache->values,
        .num_tokens = s->num_tokens,
        .slot_T = group->slot_T,
        .sequence_T = group->sequence_T,
        .length_T = group->length_T,
        .block_table = group->block_table_NB,
        .num_sequences = group->num_sequences,
        .table_stride = group->table_stride,
        .window = i->window,
        .most_seen = most_seen(s, i),
        .scores = s->scratch,
        .room = room_for(most_seen(s, i)),
        .out = rows_at(p, s, i->o),
    };
    run_attention(&op, threads_for(s, op.num_tokens * op.most_seen * i->num_heads * i->head_dim));
}

static void do_copy(const program *p, const program_step *s, const copy_step *i) {
    const copy_op op = {
        rows_at(p, s, i->x),     rows_at(p, s, i->y),     s->num_tokens, i->num_heads, i->width,
        p->width_B[i->x.buffer], p->width_B[i->y.buffer], i->x_apart,    i->y_apart,
    };
    run_copy(&op, threads_for(s, s->num_tokens * i->num_heads * i->width));
}

static void do_route(const program *p, const program_step *s, const route_step *i) {
    route_op op = {
        .kernels = p->kernels,
        .gate = i->gate,
        .rule = i->rule,
        .x = rows_at(p, s, i->x),
        .num_tokens = s->num_tokens,
        .num_places = i->top_k,
        .logits_TE = rows_at(p, s, i->logits),
        .weights_TK = rows_at(p, s, i->weights),
        .ids_TK = (int64_t *)rows_at(p, s, i->ids),
        .scratch = s->scratch,
    };
    if (s->forced.ids_RPC != NULL) {
        op.candidates_PC = s->forced.ids_RPC + i->order * s->forced.num_rows * s->forced.num_candidates;
        op.candidate_row_T = s->forced.row_T;
        op.num_candidates = s->forced.num_candidates;
    }
    run_route(&op, threads_for(s, s->num_tokens * i->gate.num_in * i->gate.num_out));
    if (s->chosen_TRK == NULL) return;
    for (long t = 0; t < s->num_tokens; t++) {
        uint16_t *to_K = s->chosen_TRK + (t * p->num_routers + i->order) * i->top_k;
        for (long k = 0; k < i->top_k; k++) to_K[k] = (uint16_t)op.ids_TK[t * i->top_k + k];
    }
}

/* Whether the rows are computed, or on their way. */
static int do_experts(const program *p, const program_step *s, const experts_step *i) {
    const float *x = rows_at(p, s, i->x), *weights_TK = rows_at(p, s, i->weights);
    const int64_t *ids_TK = (const int64_t *)rows_at(p, s, i->ids);
    const long width = p->width_B[STREAM];
    if (s->others != NULL) {
        const layer_rows rows = {i->layer, s->num_tokens, width, i->top_k, x, 0, weights_TK, ids_TK};
        return s->others->begin(s->others->self, &rows) == 0;
    }
    if (s->tables == NULL) return 0;
    const expert_table *table = s->tables->tables[i->layer];
    const long num_slices = table->num_experts / i->num_experts;
    const tokens_op op = {
        .kernels = p->kernels,
        .table = table,
        .x = x,
        .num_tokens = s->num_tokens,
        .top_k = i->top_k,
        .num_slices = num_slices,
        .ids_TK = ids_TK,
        .weights_TK = weights_TK,
        .out = rows_at(p, s, i->y),
        .scratch = s->scratch,
    };
    run_tokens(&op, threads_for(s, s->num_tokens * i->top_k * num_slices * width * table->hidden_width));
    return 1;
}

static void do_join(const program *p, const program_step *s, const join_step *i) {
    const long width = p->width_B[STREAM];
    const join_op op = {
        p->kernels.rows, s->stream, rows_at(p, s, i->y), rows_at(p, s, i->also), i->norm, i->scale, s->num_tokens, width,
    };
    run_join(&op, threads_for(s, s->num_tokens * width));
}

/* Whether it is done. `is_away`: the rows of the layer are on their way, by our own doing. */
static int do_instruction(const program *p, const program_step *s, const instruction *i, int *is_away) {
    const long num_tokens = s->num_tokens;
    switch (i->kind) {
        case EMBED:
            run_embedding(&i->embed, s->ids_T, s->position_T, num_tokens, s->stream,
                          threads_for(s, num_tokens * i->embed.width));
            return 1;
        case LINEAR: do_linear(p, s, &i->linear); return 1;
        case HEAD_LINEAR: do_head_linear(p, s, &i->head_linear); return 1;
        case NORM: do_norm(p, s, &i->norm); return 1;
        case CLAMP:
            run_clamp(rows_at(p, s, i->clamp.x), num_tokens, i->clamp.width, p->width_B[i->clamp.x.buffer], i->clamp.limit,
                      threads_for(s, num_tokens * i->clamp.width));
            return 1;
        case ROTATE: do_rotate(p, s, &i->rotate); return 1;
        case ATTEND: do_attend(p, s, &i->attend); return 1;
        case COPY: do_copy(p, s, &i->copy); return 1;
        case ROUTE:
            if (s->stops_at_routers) return 0;
            do_route(p, s, &i->route);
            return 1;
        case EXPERTS: return *is_away = do_experts(p, s, &i->experts);
        case ANSWER:
            if (!*is_away) return 0;
            *is_away = 0;
            return s->others == NULL || s->others->finish(s->others->self, rows_at(p, s, i->experts.y)) == 0;
        case GATE:
            run_gate(p->kernels.rows, rows_at(p, s, i->gate.y), rows_at(p, s, i->gate.gate), num_tokens, i->gate.width,
                     threads_for(s, num_tokens * i->gate.width));
            return 1;
        case JOIN: do_join(p, s, &i->join); return 1;
        default: return 0;
    }
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

long run_program(program *p, const program_step *s, long first) {
    int is_away = 0;
    double before = p->is_timed ? now() : 0;
    for (long n = first; n < p->num_instructions; n++) {
        const instruction *i = &p->instructions[n];
        if (!do_instruction(p, s, i, &is_away)) return n;
        if (p->is_timed) {
            const double after = now();
            p->seconds_I[n] += after - before;
            before = after;
        }
    }
    return p->num_instructions;
}

static long linear_bytes(long num_rows, long num_in) { return num_rows * most_row_bytes(num_in); }

static long experts_bytes(const program_step *s, const experts_step *i) {
    const expert_table *table = s->tables->tables[i->layer];
    return tokens_scratch_bytes(table, s->num_tokens, table->num_experts / i->num_experts * i->top_k);
}

static long instruction_bytes(const program_step *s, const instruction *i) {
    switch (i->kind) {
        case LINEAR: return linear_bytes(s->num_tokens, i->linear.w.num_in);
        case HEAD_LINEAR: return linear_bytes(s->num_tokens * i->head_linear.num_heads, i->head_linear.w.num_in);
        case ATTEND: return 4 * s->num_threads * room_for(most_seen(s, &i->attend));
        case ROUTE: return 4 * s->num_threads * CHOICE_FLOATS(i->route.gate.num_out);
        case EXPERTS:
            if (s->tables == NULL) return 0;
            return experts_bytes(s, &i->experts);
        default: return 0;
    }
}

long program_scratch_bytes(const program *p, const program_step *s) {
    long most = 0;
    for (long n = 0; n < p->num_instructions; n++) most = at_least(most, instruction_bytes(s, &p->instructions[n]));
    return most;
}

const char *check_cache(const program *p, const paged_cache *cache) {
    if (cache->num_layers != p->num_layers) return "a cache of another number of layers";
    for (long n = 0; n < p->num_instructions; n++) {
        if (p->instructions[n].kind != ATTEND) continue;
        const attend_step *i = &p->instructions[n].attend;
        const layer_cache *found = &cache->layers[i->layer];
        if (found->num_kv_heads != i->num_kv_heads || found->key_width != i->head_dim) return "a cache of other keys";
        if (i->v.buffer != NOWHERE && (found->values == NULL || found->value_width != i->value_width))
            return "a cache of other values";
        if (found->group < 0 || found->group >= cache->num_groups) return "a layer of no group of the cache";
    }
    return NULL;
}

static const char *check_group(const program_step *s, const group_context *g, long num_blocks) {
    const long size = s->cache->block_size;
    for (long t = 0; t < s->num_tokens; t++) {
        if (g->slot_T[t] < 0 || g->slot_T[t] >= num_blocks * size) return "a slot outside of the cache";
        if (g->sequence_T[t] < 0 || g->sequence_T[t] >= g->num_sequences) return "a token of no sequence";
        if (g->length_T[t] < 1 || g->length_T[t] > g->table_stride * size) return "a token that sees more than there is";
        if (g->length_T[t] > g->longest) return "a token that sees more than the longest";
    }
    for (long i = 0; i < g->num_sequences * g->table_stride; i++)
        if (g->block_table_NB[i] < 0 || g->block_table_NB[i] >= num_blocks) return "a block outside of the cache";
    return NULL;
}

static const char *check_tables(const program *p, const layer_tables *tables) {
    for (long n = 0; n < p->num_instructions; n++) {
        if (p->instructions[n].kind != EXPERTS) continue;
        const experts_step *i = &p->instructions[n].experts;
        const expert_table *table = i->layer < tables->num_layers ? tables->tables[i->layer] : NULL;
        if (table == NULL || table->width != p->width_B[STREAM]) return "a layer without experts of its size";
        /* Where there are more, they are slices. */
        if (table->num_experts == 0 || table->num_experts % i->num_experts) return "a layer whose router is of other experts";
    }
    return NULL;
}

const char *check_step(const program *p, const program_step *s) {
    const embedding *e = &p->instructions[0].embed;
    for (long t = 0; t < s->num_tokens; t++) {
        if (s->ids_T[t] < 0 || s->ids_T[t] >= e->num_ids) return "a token id outside of the vocabulary";
        if (e->positions_SD != NULL && (s->position_T[t] < 0 || s->position_T[t] >= e->num_positions))
            return "a position outside of the table";
    }
    for (long t = 0; s->forced.ids_RPC != NULL && t < s->num_tokens; t++)
        if (s->forced.row_T[t] < 0 || s->forced.row_T[t] >= s->forced.num_rows) return "a forced row outside of the table";
    for (long g = 0; g < s->cache->num_groups; g++) {
        const char *wrong = check_group(s, &s->groups[g], s->cache->num_blocks_G[g]);
        if (wrong != NULL) return wrong;
    }
    return s->tables == NULL || s->stops_at_routers ? NULL : check_tables(p, s->tables);
}
