/* Packs to rows of a graph, and the graphs that take them. */
#include "train/trainer.h"

#include <string.h>

/* ------------------------------------------------------------------- rows */

int rows_new(int64_t max_rows, struct rows *out, struct shu_error *err) {
    size_t count = (size_t)max_rows + 1;
    *out = (struct rows){.max_rows = max_rows};
    out->tokens = mem_calloc(5 * count, sizeof *out->tokens);
    out->weight = mem_calloc(count, sizeof *out->weight);
    out->sequence = mem_calloc(2 * count, sizeof *out->sequence);
    if (!out->tokens || !out->weight || !out->sequence) {
        rows_free(out);
        return SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %lld rows", (long long)max_rows);
    }
    out->position = out->tokens + count;
    out->begin = out->position + count;
    out->gather = out->begin + count;
    out->targets = out->gather + count;
    out->loss_first = out->sequence + count;
    return SHU_OK;
}

void rows_free(struct rows *rows) {
    mem_free(rows->tokens);
    mem_free(rows->weight);
    mem_free(rows->sequence);
    *rows = (struct rows){0};
}

void rows_clear(struct rows *rows) {
    rows->rows = rows->gathered = rows->sequences = 0;
    rows->loss_first[0] = 0;
}

void rows_add(struct rows *rows, const struct train_pack *pack) {
    int32_t base = (int32_t)rows->rows;
    for (int64_t s = 0; s < pack->sequences; s++) {
        for (int32_t r = pack->first[s]; r < pack->first[s + 1]; r++) {
            int32_t row = base + r;
            rows->tokens[row] = pack->tokens[r];
            rows->position[row] = pack->position[r];
            rows->begin[row] = base + pack->begin[r];
            if (pack->targets[r] < 0) continue;
            rows->gather[rows->gathered] = row;
            rows->targets[rows->gathered] = pack->targets[r];
            rows->weight[rows->gathered++] = pack->weight[r];
        }
        rows->sequence[rows->sequences++] = pack->sequence[s];
        rows->loss_first[rows->sequences] = rows->gathered;
    }
    rows->rows += pack->rows;
}

int cursor_take(struct trainer *trainer, struct cursor *cursor, struct train_pack *out, struct shu_error *err) {
    int64_t packs;
    int status = trainset_packs(trainer->set, false, cursor->epoch, &packs, err);
    if (!status) status = trainset_pack(trainer->set, false, cursor->epoch, cursor->pack, out, err);
    if (status) return status;
    if (++cursor->pack == packs) *cursor = (struct cursor){cursor->epoch + 1, 0};
    return SHU_OK;
}

/* ----------------------------------------------------------------- passes */

/* Logits that exist at once: enough rows to keep products busy, few enough to stay a small part of the memory. */
#define LOGIT_BYTES ((int64_t)192 << 20)

static int64_t part_rows(const struct trainer *trainer) {
    int64_t rows = LOGIT_BYTES / 4 / learner_config(trainer->learner)->vocab / 16 * 16;
    return rows < 32 ? 32 : rows > 1024 ? 1024 : rows;
}

static int pass_new(struct trainer *trainer, enum pass_kind kind, struct shu_error *err) {
    struct pass *pass = &trainer->passes[kind];
    int64_t most = trainer->rows.max_rows;
    bool learn = kind == PASS_LEARN;
    pass->nll = mem_calloc((size_t)most, sizeof *pass->nll);
    int status = pass->nll ? graph_new(trainer->kernels, &pass->graph, err)
                           : SHU_FAIL(err, SHU_E_NOMEM, "out of memory for %lld losses", (long long)most);
    if (!status)
        status = learner_graph(trainer->learner, pass->graph, kind != PASS_REFERENCE, learn, part_rows(trainer), most,
                               pass->nll, &pass->nodes, err);
    if (!status && learn) status = graph_backward(pass->graph, err);
    if (!status) status = graph_plan(pass->graph, most, most, pool_threads(trainer->pool), err);
    if (status) pass_free(pass);
    return status;
}

void pass_free(struct pass *pass) {
    graph_free(pass->graph);
    mem_free(pass->nll);
    *pass = (struct pass){0};
}

static void bind(struct graph *graph, node_id node, const void *values, int64_t count) {
    memcpy(graph_data(graph, node), values, (size_t)count * 4);
}

int pass_run(struct trainer *trainer, enum pass_kind kind, uint64_t dropout_seed, struct shu_error *err) {
    struct pass *pass = &trainer->passes[kind];
    const struct rows *rows = &trainer->rows;
    const struct learner_nodes *nodes = &pass->nodes;
    int status = pass->graph ? SHU_OK : pass_new(trainer, kind, err);
    if (status) return status;
    bind(pass->graph, nodes->tokens, rows->tokens, rows->rows);
    bind(pass->graph, nodes->positions, rows->position, rows->rows);
    bind(pass->graph, nodes->begin, rows->begin, rows->rows);
    bind(pass->graph, nodes->gather, rows->gather, rows->gathered);
    bind(pass->graph, nodes->targets, rows->targets, rows->gathered);
    bind(pass->graph, nodes->weights, rows->weight, rows->gathered);
    const struct graph_step step = {.rows = rows->rows, .gathered = rows->gathered, .dropout_seed = dropout_seed};
    return graph_run(pass->graph, trainer->pool, &step, err);
}
