/* How the operations are cut into tasks. Threads take tasks from a counter, so that an uneven or a busy core
 * does not hold up the others; which thread did a task shows nowhere. */
#include "ops.h"

#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "threads.h"

static long ceil_div(long a, long b) { return (a + b - 1) / b; }
static long at_most(long a, long b) { return a < b ? a : b; }

static void gemm(const kernel_set *kernels, const matrix *w, const void *x, long stride, int num_rows,
                 long first_panel, int count, upcoming later, float *sums) {
    const block_kernels *blocks = kernels->gemm->blocks;
    const uint8_t *panels = (const uint8_t *)w->panels + first_panel * panel_bytes(w);
    if (w->type == WEIGHT_FP8) {
        const float *scales = w->scale_NBp + first_panel * fp8_blocks_of(w->num_in) * PANEL;
        blocks->fp8(panels, scales, w->num_in, x, stride, num_rows, count, later, sums);
        return;
    }
    if (is_of_blocks(w)) {
        const block_gemm_fn fn = w->type == WEIGHT_Q8 ? blocks->q8 : w->type == WEIGHT_Q4 ? blocks->q4 : blocks->mxfp4;
        fn(panels, blocks_of(w->num_in), x, stride / BLOCK_INPUTS, num_rows, count, later, sums);
        return;
    }
    gemm_fn fn = w->type == WEIGHT_F32    ? kernels->gemm->f32
                 : w->type == WEIGHT_I8   ? kernels->gemm->i8
                 : has_exact_rows(kernels->gemm, w) ? kernels->gemm->bf16_of_exact_rows
                                                    : kernels->gemm->bf16;
    fn(w, x, stride, num_rows, first_panel, count, later, sums);
}

/* Tasks of a product: blocks of rows by groups of panels, the panels of one block of rows first. */
static long num_product_tasks(const matrix *w, long num_rows) {
    return ceil_div(num_rows, ROWS_PER_TASK) * ceil_div(num_panels(w), PANELS_PER_TASK);
}

/* What such a task reads first. Where there is no later task, a task names itself: what it has read is near. */
static upcoming panels_of_task(const matrix *w, long task) {
    const long panel = task % ceil_div(num_panels(w), PANELS_PER_TASK) * PANELS_PER_TASK;
    return (upcoming){(const char *)w->panels + panel * panel_bytes(w), panel_bytes(w)};
}

/* One task of y = epilogue(x Wᵀ) over `num_rows` rows that begin at `first_row` of x and of y. */
static void product_task(const kernel_set *kernels, const epilogue *e, const void *x, long stride, enum row_form form,
                         long first_row, long num_rows, long task, upcoming later) {
    float sums[ROWS_PER_TASK * PANELS_PER_TASK * PANEL];
    const long panels = num_panels(e->w), groups = ceil_div(panels, PANELS_PER_TASK);
    const long row = task / groups * ROWS_PER_TASK, panel = task % groups * PANELS_PER_TASK;
    const int rows = (int)at_most(ROWS_PER_TASK, num_rows - row);
    const int count = (int)at_most(PANELS_PER_TASK, panels - panel);
    const char *from = (const char *)x + row_bytes(form, (first_row + row) * stride);
    gemm(kernels, e->w, from, stride, rows, panel, count, later, sums);
    kernels->rows->finish(e, sums, first_row + row, rows, panel, count);
}

typedef struct {
    linear_op *op;
    enum row_form form;
    tasks rows;
    atomic_long next_task;
} linear_job;

/* Pairs of bfloat16 are whole: a row's odd last value is one of a pair with zero. */
static void pad(void *rows, enum row_form form, long row, long width) {
    if (form == AS_BF16 && width & 1) ((uint16_t *)rows)[row * padded_width(form, width) + width] = 0;
}

static void prepare_row(const linear_op *op, enum row_form form, long row) {
    const long width = op->w.num_in;
    void *to = (char *)op->scratch + row_bytes(form, row * padded_width(form, width));
    op->kernels.rows->normalise(&op->norm, op->x + row * op->stride, width, to, form);
    pad(op->scratch, form, row, width);
}

static void linear_work(void *arg, int thread, int num_threads) {
    (void)thread;
    linear_job *job = arg;
    linear_op *op = job->op;
    const void *x = op->x;
    long stride = op->stride;
    if (op->norm.kind != NORM_NONE || job->form != AS_F32) {
        long done = 0;
        for (long row; (row = take(&job->rows.next, 1)) < op->num_rows; done++) prepare_row(op, job->form, row);
        finish_tasks(&job->rows, done, op->num_rows);
        x = op->scratch;
        stride = padded_width(job->form, op->w.num_in);
    }
    const epilogue e = {&op->w, op->residual, op->y, op->w.num_out, op->activation, AS_F32};
    const long num_tasks = num_product_tasks(&op->w, op->num_rows);
    for (long task; (task = take(&job->next_task, 1)) < num_tasks;)
        product_task(&op->kernels, &e, x, stride, job->form, 0, op->num_rows, task,
                     panels_of_task(&op->w, task + num_threads < num_tasks ? task + num_threads : task));
}

void run_linear(linear_op *op, int num_threads) {
    linear_job job = {.op = op, .form = row_form_of(op->kernels.gemm, &op->w)};
    /* A thread without a task would be woken for nothing. */
    run_parallel(linear_work, &job, (int)at_most(num_threads, num_product_tasks(&op->w, op->num_rows)));
}

typedef struct {
    const head_linear_op *op;
    enum row_form form;
    tasks rows;
    atomic_long next_task;
} head_linear_job;

/* A head's rows follow each other, in the form that its product reads. */
static void convert_heads(const head_linear_op *op, enum row_form form, long row) {
    const long width = op->w.num_in, padded = padded_width(form, width);
    for (long head = 0; head < op->num_heads; head++) {
        const long place = head * op->num_rows + row;
        void *to = (char *)op->scratch + row_bytes(form, place * padded);
        op->kernels.rows->normalise(&(norm){0}, op->x + row * op->stride + head * op->apart, width, to, form);
        pad(op->scratch, form, place, width);
    }
}

static void head_linear_work(void *arg, int thread, int num_threads) {
    (void)thread;
    (void)num_threads;
    head_linear_job *job = arg;
    const head_linear_op *op = job->op;
    const int is_converted = job->form != AS_F32;
    if (is_converted) {
        long done = 0;
        for (long row; (row = take(&job->rows.next, 1)) < op->num_rows; done++) convert_heads(op, job->form, row);
        finish_tasks(&job->rows, done, op->num_rows);
    }
    const long num_out = op->w.num_out, per_head = num_product_tasks(&op->w, op->num_rows);
    const long padded = padded_width(job->form, op->w.num_in), converted = row_bytes(job->form, op->num_rows * padded);
    for (long task; (task = take(&job->next_task, 1)) < per_head * op->num_heads;) {
        const long head = task / per_head;
        matrix w = op->w;
        w.panels = (const char *)w.panels + head * panel_bytes(&w) * num_panels(&w);
        const epilogue e = {&w, NULL, op->y + head * num_out, op->num_heads * num_out, ACTIVATION_NONE, AS_F32};
        const void *x = op->x + head * op->apart;
        if (is_converted) x = (const char *)op->scratch + head * converted;
        product_task(&op->kernels, &e, x, is_converted ? padded : op->stride, job->form, 0, op->num_rows, task % per_head,
                     panels_of_task(&w, task % per_head));
    }
}

void run_head_linear(head_linear_op *op, int num_threads) {
    head_linear_job job = {.op = op, .form = row_form_of(op->kernels.gemm, &op->w)};
    run_parallel(head_linear_work, &job, num_threads);
}

typedef struct {
    const head_norm_op *op;
    atomic_long next_row;
} head_norm_job;

static void head_norm_work(void *arg, int thread, int num_threads) {
    (void)thread;
    (void)num_threads;
    head_norm_job *job = arg;
    const head_norm_op *op = job->op;
    for (long row; (row = take(&job->next_row, 1)) < op->num_rows;)
        for (long head = 0; head < op->num_heads; head++) {
            float *x = op->x + row * op->stride + head * op->norm.width;
            op->kernels.rows->normalise(&op->norm, x, op->norm.width, x, AS_F32);
        }
}

void run_head_norm(head_norm_op *op, int num_threads) {
    head_norm_job job = {.op = op};
    run_parallel(head_norm_work, &job, num_threads);
}

/* Scratch of the experts: normalised rows, hidden rows, and what the experts said. */
typedef struct {
    experts_op *op;
    enum row_form form;
    char *normed, *hidden;
    float *said;
    tasks pairs, up, down;
    atomic_long next_combined;
} experts_job;

long experts_scratch_bytes(const expert_table *table, long num_pairs) {
    return num_pairs * (2 * most_row_bytes(table->width) + most_row_bytes(table->hidden_width));
}

static void normalise_pairs(experts_job *job) {
    const experts_op *op = job->op;
    const long width = op->table->width;
    const long size = row_bytes(job->form, padded_width(job->form, width));
    const segment *s = op->segments;
    long end = s->num_pairs, done = 0;
    for (long pair; (pair = take(&job->pairs.next, 1)) < op->num_pairs; done++) {
        while (pair >= end) end += (++s)->num_pairs;
        const expert *e = &op->table->experts[s->expert];
        const float *x = op->x + (op->row_P == NULL ? pair : op->row_P[pair]) * width;
        op->kernels.rows->normalise(&e->norm, x, width, job->normed + pair * size, job->form);
        pad(job->normed, job->form, pair, width);
        pad(job->hidden, job->form, pair, op->table->hidden_width);
    }
    finish_tasks(&job->pairs, done, op->num_pairs);
}

static const matrix *matrix_of(const experts_op *op, const segment *s, int is_up) {
    const expert *e = &op->table->experts[s->expert];
    return is_up ? &e->up : &e->down;
}

/* What the `task`-th from the first of segment `s` on reads first; after those of `up` come those of `down`. */
static upcoming panels_of_expert_task(const experts_op *op, const segment *s, long task, int is_up) {
    const segment *end = op->segments + op->num_segments;
    for (;;) {
        const matrix *w = matrix_of(op, s, is_up);
        const long num_tasks = num_product_tasks(w, s->num_pairs);
        if (task < num_tasks) return panels_of_task(w, task);
        task -= num_tasks;
        if (++s < end) continue;
        if (!is_up) return panels_of_task(w, num_tasks - 1);
        s = op->segments;
        is_up = 0;
    }
}

/* The tasks of all segments in a row; `is_up` picks the matrix, and with it what is read and written. */
static void expert_products(experts_job *job, int is_up, int num_threads) {
    const experts_op *op = job->op;
    const expert_table *table = op->table;
    const segment *s = op->segments, *end = s + op->num_segments;
    tasks *products = is_up ? &job->up : &job->down;
    long first_pair = 0, first_task = 0, done = 0;
    for (long task = take(&products->next, 1); s < end;) {
        const matrix *w = matrix_of(op, s, is_up);
        const long num_tasks = num_product_tasks(w, s->num_pairs);
        if (task >= first_task + num_tasks) {
            first_task += num_tasks;
            first_pair += s++->num_pairs;
            continue;
        }
        const long stride = padded_width(job->form, w->num_in), hidden = padded_width(job->form, table->hidden_width);
        const epilogue up = {w, NULL, job->hidden, hidden, table->activation, job->form};
        const epilogue down = {w, NULL, job->said, table->width, ACTIVATION_NONE, AS_F32};
        product_task(&op->kernels, is_up ? &up : &down, is_up ? job->normed : job->hidden, stride, job->form, first_pair,
                     s->num_pairs, task - first_task, panels_of_expert_task(op, s, task - first_task + num_threads, is_up));
        task = take(&products->next, 1);
        done++;
    }
    finish_tasks(products, done, first_task);
}

/* What a slice of a token's experts said, weighted and added; NULL where it has none. It is in `out`, or where that is NULL
 * in the row of the first of them. */
static const float *add_up(const experts_op *op, float *said, long slice, long token, float *out) {
    const long width = op->table->width;
    const int32_t *pair_K = op->pair_STK + (slice * op->num_rows + token) * op->top_k;
    float *sum = NULL;
    for (long k = 0; k < op->top_k; k++) {
        if (pair_K[k] < 0) continue;
        float *y = said + pair_K[k] * width;
        const float w = op->weight_P[token * op->top_k + k];
        if (sum == NULL) op->kernels.rows->scale(y, w, width, sum = out == NULL ? y : out);
        else op->kernels.rows->add_scaled(y, w, width, sum);
    }
    return sum;
}

static void combine_token(const experts_op *op, float *said, long token) {
    const long width = op->table->width;
    float *out = op->out + token * width;
    if (add_up(op, said, 0, token, out) == NULL) memset(out, 0, sizeof(float) * width);
    for (long slice = 1; slice < op->num_slices; slice++) {
        const float *sum = add_up(op, said, slice, token, NULL);
        if (sum != NULL) op->kernels.rows->add(sum, width, out);
    }
    if (op->residual != NULL) op->kernels.rows->add(op->residual + token * width, width, out);
}

/* A slice of columns of all rows: no two threads meet in one place. */
static void combine_columns(const experts_op *op, const float *said, long column, long count) {
    const long width = op->table->width;
    for (long row = 0; row < op->num_rows; row++) memset(op->out + row * width + column, 0, sizeof(float) * count);
    for (long pair = 0; pair < op->num_pairs; pair++) {
        const long row = op->row_P == NULL ? pair : op->row_P[pair];
        op->kernels.rows->add_scaled(said + pair * width + column, op->weight_P[pair], count,
                                     op->out + row * width + column);
    }
}

static void combine(experts_job *job) {
    const experts_op *op = job->op;
    const long columns = 128, width = op->table->width;
    if (op->combination == COMBINE_TOKENS) {
        for (long token; (token = take(&job->next_combined, 1)) < op->num_rows;) combine_token(op, job->said, token);
    } else if (op->combination == COMBINE_ROWS) {
        for (long column; (column = take(&job->next_combined, columns)) < width;)
            combine_columns(op, job->said, column, at_most(columns, width - column));
    }
}

static void experts_work(void *arg, int thread, int num_threads) {
    (void)thread;
    experts_job *job = arg;
    if (job->op->num_pairs > 0) {
        normalise_pairs(job);
        expert_products(job, 1, num_threads);
        expert_products(job, 0, num_threads);
    }
    combine(job);
}

/* Products so few that another thread would be woken for longer than it could help. */
#define FEW_PRODUCTS (1L << 15)

void run_experts(experts_op *op, int num_threads) {
    experts_job job = {.op = op};
    const expert_table *table = op->table;
    if (op->num_pairs * table->width * table->hidden_width < FEW_PRODUCTS) num_threads = 1;
    if (op->num_segments > 0) job.form = row_form_of(op->kernels.gemm, &table->experts[op->segments[0].expert].up);
    job.normed = op->scratch;
    job.hidden = job.normed + op->num_pairs * most_row_bytes(table->width);
    char *said = job.hidden + op->num_pairs * most_row_bytes(table->hidden_width);
    job.said = op->combination == COMBINE_NOT ? op->out : (float *)said;
    run_parallel(experts_work, &job, num_threads);
}

typedef struct {
    const rotary_op *op;
    atomic_long next_row;
} rotary_job;

static void rotary_work(void *arg, int thread, int num_threads) {
    (void)thread;
    (void)num_threads;
    rotary_job *job = arg;
    const rotary_op *op = job->op;
    for (long row; (row = take(&job->next_row, 1)) < op->num_rows;)
        op->kernels.rows->turn(&op->how, op->position_R[row], op->num_heads, op->head_dim, op->x + row * op->stride);
}

void run_rotary(rotary_op *op, int num_threads) {
    rotary_job job = {.op = op};
    run_parallel(rotary_work, &job, num_threads);
}

typedef struct {
    attention_op *op;
    long heads_at_once, rows_at_once;
    int heads_first;
    tasks rows;
    atomic_long next_task;
} attention_job;

static void write_slot(const attention_op *op, const float *heads, long width, void *cache, long row) {
    const attention_source *s = &op->source;
    const long block = op->slot_T[row] / s->block_size, place = op->slot_T[row] % s->block_size;
    for (long head = 0; head < s->num_kv_heads; head++) {
        const long at = ((block * s->num_kv_heads + head) * s->block_size + place) * width;
        const float *x = heads + head * width;
        if (s->cache_is_bf16) op->kernels.rows->to_bf16(x, width, (uint16_t *)cache + at);
        else memcpy((float *)cache + at, x, sizeof(float) * width);
    }
}

static void write_row(const attention_op *op, long row) {
    write_slot(op, op->k + row * op->k_stride, op->source.head_dim, op->keys, row);
    if (op->v != NULL) write_slot(op, op->v + row * op->v_stride, op->source.value_width, op->values, row);
}

/* How many heads that see one key head go together, and how many rows: as have room for their scores, and leave work to
 * all threads. Where a sequence has several rows they do, head by head, and find its keys in the cache of the core; where
 * it has one, its heads follow each other, whose keys are neighbours in memory. */
static void choose_sizes(attention_job *job, int num_threads) {
    const attention_op *op = job->op;
    const long group = op->source.num_heads / op->source.num_kv_heads;
    long heads = at_most(at_most(group, MAX_HEADS_AT_ONCE), op->room / op->most_seen);
    while (heads > 1 && op->num_tokens * op->source.num_kv_heads * ceil_div(group, heads) < 2L * num_threads)
        heads = (heads + 1) / 2;
    job->heads_first = op->num_tokens < 4 * op->num_sequences;
    long rows = job->heads_first ? 1 : at_most(MAX_ROWS_AT_ONCE, op->room / (heads * op->most_seen));
    while (rows > 1 && op->num_tokens / rows * op->source.num_kv_heads * ceil_div(group, heads) < 8L * num_threads) rows--;
    job->heads_at_once = heads;
    job->rows_at_once = rows;
}

static seen seen_by(const attention_op *op, long row) {
    const long length = op->length_T[row];
    return (seen){row, op->window > 0 && length > op->window ? length - op->window : 0, length};
}

/* Heads `head` on of rows `first` to `end` - 1, sequence by sequence. */
static void attend_rows(const attention_op *op, long first, long end, long head, long num_heads, float *scores) {
    queries q = {.head = head, .num_heads = num_heads};
    for (long row = first; row < end; row++) {
        q.blocks = op->block_table + op->sequence_T[row] * op->table_stride;
        q.rows[q.num_rows++] = seen_by(op, row);
        if (row + 1 < end && op->sequence_T[row + 1] == op->sequence_T[row]) continue;
        op->kernels.rows->attend(&op->source, &q, scores, op->most_seen, op->out);
        q.num_rows = 0;
    }
}

static void attention_work(void *arg, int thread, int num_threads) {
    attention_job *job = arg;
    const attention_op *op = job->op;
    long done = 0;
    for (long row; (row = take(&job->rows.next, 1)) < op->num_tokens; done++) write_row(op, row);
    finish_tasks(&job->rows, done, op->num_tokens);
    const long group = op->source.num_heads / op->source.num_kv_heads;
    const long heads = job->heads_at_once, rows = job->rows_at_once;
    const long in_group = ceil_div(group, heads), in_rows = ceil_div(op->num_tokens, rows);
    const long in_parts = op->source.num_kv_heads * in_group, num_tasks = in_parts * in_rows;
    long at_once = num_tasks / (num_threads * 16L);
    at_once = at_once < 1 ? 1 : at_once > 16 ? 16 : at_once;
    float *scores = op->scores + thread * op->room;
    for (long first; (first = take(&job->next_task, at_once)) < num_tasks;)
        for (long task = first; task < num_tasks && task < first + at_once; task++) {
            const long row = (job->heads_first ? task / in_parts : task % in_rows) * rows;
            const long part = job->heads_first ? task % in_parts : task / in_rows, head = part % in_group * heads;
            attend_rows(op, row, at_most(row + rows, op->num_tokens), part / in_group * group + head,
                        at_most(heads, group - head), scores);
        }
}

void run_attention(attention_op *op, int num_threads) {
    attention_job job = {.op = op};
    choose_sizes(&job, num_threads);
    run_parallel(attention_work, &job, num_threads);
}
