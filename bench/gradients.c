/* One training step with given adapters and tokens: loss and every adapter's gradient, for vs_torch_step.py.
 *
 *   gradients MODEL ADAPTER TOKENS CONTEXT [OUT] [--bf16] [--recompute] [--steps N]
 *
 * ADAPTER: folder in PEFT's form, its values are taken; TOKENS: int32 file, sequences of CONTEXT tokens, all of them
 * with a loss. Writes OUT/NAME.f32 and prints {"loss", "seconds", "peak_rss_bytes", "activation_bytes"} and, on
 * stderr, the time per operation. */
#include <stdlib.h>
#include <string.h>

#include "nn/nn.h"

struct job {
    struct model *model;
    struct adapter *adapter;
    struct learner *learner;
    struct graph *graph;
    struct pool *pool;
    struct learner_nodes nodes;
    struct buf tokens;
    float *nll;
    int64_t rows, context, losses; /* the last token of a sequence has no next one */
};

static void check(int status, const struct shu_error *err) {
    if (status == SHU_OK) return;
    fprintf(stderr, "gradients: %s\n", err->message);
    exit(1);
}

/* Copies the adapter's values into the learner's parameters. */
static void take_adapter(struct job *job) {
    int count;
    struct learn_parameter *parameters = learner_parameters(job->learner, &count);
    for (int i = 0; i < count; i++) {
        struct graph_parameter *to = &parameters[i].parameter;
        char name[96];
        snprintf(name, sizeof name, "%.*s", (int)(strlen(to->name) - strlen(".lora_a")), to->name);
        const struct adapter_pair *pair = adapter_find(job->adapter, name);
        bool is_a = to->name[strlen(to->name) - 1] == 'a';
        if (pair == NULL || pair->in * pair->rank != (is_a ? to->rows * to->cols : pair->in * pair->rank)) {
            fprintf(stderr, "gradients: the adapter has no fitting %s\n", name);
            exit(1);
        }
        memcpy(to->data, is_a ? pair->a : pair->b, (size_t)(to->rows * to->cols) * sizeof(float));
    }
}

static void bind(struct job *job) {
    const int32_t *tokens = (const int32_t *)job->tokens.data;
    int32_t *ids = graph_data(job->graph, job->nodes.tokens), *position = graph_data(job->graph, job->nodes.positions);
    int32_t *begin = graph_data(job->graph, job->nodes.begin), *gather = graph_data(job->graph, job->nodes.gather);
    int32_t *targets = graph_data(job->graph, job->nodes.targets);
    float *weights = graph_data(job->graph, job->nodes.weights);
    int64_t n = 0;
    for (int64_t row = 0; row < job->rows; row++) {
        ids[row] = tokens[row];
        position[row] = (int32_t)(row % job->context);
        begin[row] = (int32_t)(row / job->context * job->context);
        if (row % job->context == job->context - 1) continue;
        gather[n] = (int32_t)row;
        targets[n] = tokens[row + 1];
        weights[n++] = 1 / (float)job->losses;
    }
}

static double run(struct job *job) {
    struct shu_error err;
    uint64_t start = clock_ns();
    learner_clear_gradients(job->learner, job->pool);
    struct graph_step step = {.rows = job->rows, .gathered = job->losses};
    check(graph_run(job->graph, job->pool, &step, &err), &err);
    return (double)(clock_ns() - start) * 1e-9;
}

static void write_gradients(struct job *job, const char *folder) {
    struct shu_error err;
    int count;
    struct learn_parameter *parameters = learner_parameters(job->learner, &count);
    for (int i = 0; i < count; i++) {
        const struct graph_parameter *parameter = &parameters[i].parameter;
        struct buf path = {0};
        struct atomic_file file;
        buf_printf(&path, "%s/%s.f32", folder, parameter->name);
        check(atomic_open(path.data, &file, &err), &err);
        int status =
            atomic_write(&file, parameter->gradient, (size_t)(parameter->rows * parameter->cols) * sizeof(float), &err);
        check(atomic_end(&file, status, &err), &err);
        buf_free(&path);
    }
}

static void print_profile(const struct job *job) {
    uint64_t ns[OP_KINDS], total = 0;
    graph_profile_read(job->graph, ns);
    for (int kind = 0; kind < OP_KINDS; kind++) total += ns[kind];
    for (int kind = 0; kind < OP_KINDS; kind++)
        if (ns[kind] * 200 > total)
            fprintf(stderr, "%-24s %6.1f%% %8.3f s of threads\n", graph_op_name((enum graph_op_kind)kind),
                    100.0 * (double)ns[kind] / (double)total, (double)ns[kind] * 1e-9);
}

static void open_job(struct job *job, char **argv, const struct learn_options *options) {
    struct shu_error err;
    check(model_open(argv[1], &job->model, &err), &err);
    check(adapter_open(argv[2], &job->adapter, &err), &err);
    check(file_read(argv[3], (size_t)64 << 20, &job->tokens, &err), &err);
    job->context = strtol(argv[4], NULL, 10);
    job->rows = (int64_t)(job->tokens.len / sizeof(int32_t));
    job->losses = job->rows - job->rows / job->context;
    check(pool_new(0, &job->pool, &err), &err);
    check(learner_open(job->model, options, &job->learner, &err), &err);
    take_adapter(job);
    job->nll = mem_calloc((size_t)job->losses, sizeof *job->nll);
    check(graph_new(kernels_get(), &job->graph, &err), &err);
    check(learner_graph(job->learner, job->graph, true, true, 256, job->losses, job->nll, &job->nodes, &err), &err);
    check(graph_backward(job->graph, &err), &err);
    check(graph_plan(job->graph, job->rows, job->losses, pool_threads(job->pool), &err), &err);
    bind(job);
}

int main(int argc, char **argv) {
    struct job job = {0};
    struct learn_options options = {.targets = DECODER_ALL, .rank = 16, .scale = 2, .seed = 1};
    const char *out = NULL;
    long steps = 1;
    for (int i = 5; i < argc; i++) {
        if (strcmp(argv[i], "--bf16") == 0)
            options.precision = GEMM_BF16;
        else if (strcmp(argv[i], "--recompute") == 0)
            options.recompute = true;
        else if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc)
            steps = strtol(argv[++i], NULL, 10);
        else
            out = argv[i];
    }
    if (argc < 5) {
        fprintf(stderr, "usage: gradients MODEL ADAPTER TOKENS CONTEXT [OUT] [--bf16] [--recompute] [--steps N]\n");
        return 2;
    }
    open_job(&job, argv, &options);
    double seconds = 0, loss = 0;
    for (long i = 0; i < steps; i++) {
        graph_profile(job.graph, true);
        seconds = run(&job);
    }
    for (int64_t i = 0; i < job.losses; i++) loss += (double)job.nll[i];
    if (out) write_gradients(&job, out);
    print_profile(&job);
    printf("{\"loss\": %.9g, \"seconds\": %.3f, \"peak_rss_bytes\": %llu, \"activation_bytes\": %zu}\n",
           loss / (double)job.losses, seconds, (unsigned long long)rss_peak_bytes(), graph_memory_bytes(job.graph));
    graph_free(job.graph);
    learner_close(job.learner);
    adapter_close(job.adapter);
    model_close(job.model);
    pool_free(job.pool);
    buf_free(&job.tokens);
    mem_free(job.nll);
    return 0;
}
