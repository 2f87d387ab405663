/* Training sets: text to a shard once, the shard mapped, its sequences packed. */
#include "train/trainset.h"

#include <string.h>
#include <unistd.h>

/* Part of every shard's key: change it when the same data would give other tokens. */
static const char DATA_VERSION[] = "shu training data 1";

/* ------------------------------------------------------------------- keys */

/* Everything that the interface shows of a vocabulary, and how it cuts a text that uses its merges. */
static int tokenizer_digest(const struct tokenizer *tokenizer, struct tokenizer_work *work, char out[65],
                            struct shu_error *err) {
    static const char probe[] = "The quick brown fox, 1234567890 jumps!\n\n  def f(x):\treturn x['a'] # don't\n"
                                "蜀道之难，难于上青天。《本草纲目》记载：川贝母，味苦、甘，微寒。 ٣٤ naïve Straße "
                                "Ελλάδα мир 🙂";
    struct tokens ids = {0};
    struct sha256 hash;
    int32_t head[3] = {tokenizer_count(tokenizer), tokenizer_bos(tokenizer), tokenizer_eos(tokenizer)};
    sha256_init(&hash);
    sha256_update(&hash, head, sizeof head);
    for (int32_t id = 0; id < head[0]; id++) {
        struct span piece = tokenizer_piece(tokenizer, id, true);
        uint32_t type = (uint32_t)tokenizer_type(tokenizer, id);
        sha256_update(&hash, &piece.bytes, sizeof piece.bytes);
        sha256_update(&hash, &type, sizeof type);
        if (piece.bytes) sha256_update(&hash, piece.text, piece.bytes);
    }
    int status = tokenizer_encode(tokenizer, work, probe, sizeof probe - 1, ENCODE_ADD_SPECIAL, &ids, err);
    if (!status && ids.count) sha256_update(&hash, ids.id, ids.count * sizeof *ids.id);
    tokens_free(&ids);
    sha256_hex(&hash, out);
    return status;
}

static void shard_key(const char data[65], const char tokenizer[65], const struct trainset_options *options,
                      char out[65]) {
    struct sha256 hash;
    const char *source = options->template_text ? options->template_text : "";
    const int32_t numbers[] = {options->context, options->all_tokens, options->preference, options->cut};
    sha256_init(&hash);
    sha256_update(&hash, DATA_VERSION, sizeof DATA_VERSION);
    sha256_update(&hash, data, 64);
    sha256_update(&hash, tokenizer, 64);
    sha256_update(&hash, numbers, sizeof numbers);
    sha256_update(&hash, &options->held_out, sizeof options->held_out);
    sha256_update(&hash, source, strlen(source));
    sha256_hex(&hash, out);
}

/* ------------------------------------------------------------- tokenising */

/* One pass over the data. */
struct intake {
    struct source source;
    const char *path, *shard_path;
    const struct trainset_options *options;
    struct encoder_options encoder;
    struct template *tpl;
    struct shard_writer writer;
    bool opened;
    struct examples examples;
    struct span *passages; /* [passage_cap] */
    size_t passage_cap;
    struct atomic_file rejects;
    struct buf rejects_path, hold;
    struct shu_error first; /* reason of the first rejected line */
    int64_t first_line;
    struct shu_error *err;
};

static int write_reject(struct intake *intake, const char *reason) {
    int status = SHU_OK;
    if (intake->rejects.fd < 0) status = atomic_open(intake->rejects_path.data, &intake->rejects, intake->err);
    if (status) return status;
    json_t *line = json_pack("{s:I,s:s}", "line", (json_int_t)intake->source.line, "reason", reason);
    char *text = line ? json_dumps(line, JSON_COMPACT) : NULL;
    buf_clear(&intake->hold);
    if (!text || buf_printf(&intake->hold, "%s\n", text))
        status = SHU_FAIL(intake->err, SHU_E_NOMEM, "out of memory");
    else
        status = atomic_write(&intake->rejects, intake->hold.data, intake->hold.len, intake->err);
    free(text);
    json_decref(line);
    return status;
}

static int reject(struct intake *intake, const struct shu_error *reason) {
    if (!intake->writer.counts.rejected++) {
        intake->first = *reason;
        intake->first_line = intake->source.line;
    }
    return write_reject(intake, reason->message);
}

static int take_passages(struct intake *intake, const json_t *list, size_t *count) {
    size_t i;
    json_t *id;
    *count = json_array_size(list);
    if (*count > intake->passage_cap) {
        struct span *grown = mem_realloc(intake->passages, *count * sizeof *grown);
        if (!grown) return SHU_FAIL(intake->err, SHU_E_NOMEM, "out of memory for %zu passage ids", *count);
        intake->passages = grown;
        intake->passage_cap = *count;
    }
    json_array_foreach(list, i, id) {
        intake->passages[i] = (struct span){json_string_value(id), (uint32_t)json_string_length(id)};
    }
    return SHU_OK;
}

static bool is_held_out(uint64_t document, double share) {
    uint64_t mixed = (document ^ document >> 29) * 0xBF58476D1CE4E5B9u;
    return (double)(mixed >> 11) * 0x1p-53 < share;
}

static int write_examples(struct intake *intake, const struct record *record) {
    struct examples *examples = &intake->examples;
    size_t from = 0, passages = 0;
    int status = record ? take_passages(intake, record->passages, &passages) : SHU_OK;
    bool held_out = is_held_out(examples->document, intake->options->held_out);
    for (size_t i = 0; i < examples->count && !status; i++) {
        struct shard_sequence sequence = {.line = (uint64_t)intake->source.line,
                                          .document = examples->document,
                                          .weight = record ? (float)record->weight : 1,
                                          .flags = held_out ? SHARD_HELD_OUT : 0};
        if (intake->options->preference && i) sequence.flags |= SHARD_REJECTED;
        status = shard_write(&intake->writer, &sequence, examples->tokens + from, examples->ends[i] - from,
                             intake->passages, passages, intake->err);
        from = examples->ends[i];
    }
    intake->writer.counts.cut += examples->cut;
    return status;
}

/* One line; what cannot be used goes to the rejects. */
static int take(struct intake *intake, const char *text, size_t bytes) {
    struct record record = {0};
    struct shu_error reason = {0};
    bool json = intake->source.kind == SOURCE_JSONL;
    int status = SHU_OK;
    if (json) status = record_read(text, bytes, intake->options->preference, intake->tpl != NULL, &record, &reason);
    if (!status && json)
        status = examples_make(&intake->encoder, &record, intake->options->preference, &intake->examples, &reason);
    if (!json) {
        examples_clear(&intake->examples);
        status = examples_from_text(&intake->encoder, text, bytes, &intake->examples, &reason);
    }
    if (!status)
        status = write_examples(intake, json ? &record : NULL);
    else if (status == SHU_E_NOMEM)
        status =
            SHU_FAIL(intake->err, status, "%s:%lld: %s", intake->path, (long long)intake->source.line, reason.message);
    else
        status = reject(intake, &reason);
    record_free(&record);
    return status;
}

static int take_all(struct intake *intake) {
    struct progress progress;
    const char *text;
    size_t bytes;
    int status = SHU_OK;
    progress_start(&progress, "tokenise", "B", intake->source.map.bytes, intake->options->quiet);
    while (!status && source_next(&intake->source, &text, &bytes)) {
        intake->writer.counts.lines++;
        status = take(intake, text, bytes);
        progress_update(&progress, intake->source.at);
        if (!status && interrupt_pending())
            status = SHU_FAIL(intake->err, SHU_E_CANCELLED, "interrupted while reading the data; nothing was kept");
    }
    progress_finish(&progress);
    if (!status && intake->writer.counts.sequences == 0)
        status = SHU_FAIL(intake->err, SHU_E_FORMAT, "%s:%lld: %.300s; none of the %llu lines can be used",
                          intake->path, (long long)intake->first_line, intake->first.message,
                          (unsigned long long)intake->writer.counts.lines);
    return status;
}

static int intake_begin(struct intake *intake, const struct tokenizer *tokenizer, struct tokenizer_work *work) {
    const struct trainset_options *options = intake->options;
    const char *source = options->template_text;
    intake->rejects.fd = -1;
    int status = buf_printf(&intake->rejects_path, "%s.rejects.jsonl", intake->shard_path);
    if (status) return SHU_FAIL(intake->err, status, "out of memory");
    if (options->preference && intake->source.kind == SOURCE_TEXT)
        return SHU_FAIL(intake->err, SHU_E_FORMAT, "%s: expected JSON lines of prompt, chosen and rejected, found text",
                        intake->path);
    if (source && (status = template_new(source, strlen(source), &intake->tpl, intake->err)) != 0)
        return error_context(intake->err, status, "chat template of the base: ");
    intake->encoder = (struct encoder_options){.tokenizer = tokenizer,
                                               .work = work,
                                               .tpl = intake->tpl,
                                               .context = options->context,
                                               .all_tokens = options->all_tokens,
                                               .cut = options->cut,
                                               .space_prefix = tokenizer_prefixes_space(tokenizer, work)};
    status = shard_writer_open(intake->shard_path, options->preference, &intake->writer, intake->err);
    intake->opened = !status;
    return status;
}

/* The rejects appear before the shard: whoever finds the shard finds them too. They also appear where no line was
 * of use. */
static int end_rejects(struct intake *intake, int status) {
    if (intake->rejects.fd < 0) {
        if (!status) unlink(intake->rejects_path.data); /* of an earlier shard of this name */
        return status;
    }
    if (status != SHU_E_FORMAT) return atomic_end(&intake->rejects, status, intake->err);
    atomic_end(&intake->rejects, SHU_OK, NULL);
    return status;
}

static int intake_end(struct intake *intake, int status, uint32_t vocab, const char *key, const char *digest) {
    status = end_rejects(intake, status);
    if (intake->opened && !status)
        status =
            shard_writer_commit(&intake->writer, vocab, (uint32_t)intake->options->context, key, digest, intake->err);
    else if (intake->opened)
        shard_writer_abort(&intake->writer);
    template_free(intake->tpl);
    examples_free(&intake->examples);
    mem_free(intake->passages);
    buf_free(&intake->rejects_path);
    buf_free(&intake->hold);
    return status;
}

static int tokenise(struct source *source, const char *path, const char *shard_path, const struct tokenizer *tokenizer,
                    struct tokenizer_work *work, const struct trainset_options *options, const char *key,
                    const char *digest, struct shu_error *err) {
    struct intake intake = {.source = *source, .path = path, .shard_path = shard_path, .options = options, .err = err};
    int status = intake_begin(&intake, tokenizer, work);
    if (!status) status = take_all(&intake);
    return intake_end(&intake, status, (uint32_t)tokenizer_count(tokenizer), key, digest);
}

/* ---------------------------------------------------------------- opening */

/* What a shard says of itself is only what its writer said: everything that the packs rely on is checked. */
static int check_shard(const struct shard *shard, const char *path, const char *digest, uint32_t vocab,
                       const struct trainset_options *options, struct shu_error *err) {
    if (strcmp(shard->tokenizer, digest) != 0)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "%s: this shard was made with another tokenizer than the base's; train from the text", path);
    if (shard->pairs != options->preference)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s: a shard of %s, but this method learns from %s", path,
                        shard->pairs ? "answer pairs" : "texts", options->preference ? "answer pairs" : "texts");
    if (shard->vocab != vocab)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED, "%s: a shard of %u tokens, but the base has %u; train from the text",
                        path, shard->vocab, vocab);
    for (uint64_t i = 0; i < shard->counts.sequences; i++)
        if (shard->index[i].tokens > (uint32_t)options->context + 1)
            return SHU_FAIL(err, SHU_E_RANGE, "%s: line %llu has %u tokens, but the context is %d; set context: %u",
                            path, (unsigned long long)shard->index[i].line, shard->index[i].tokens, options->context,
                            shard->context);
    return SHU_OK;
}

/* Opens the shard that is there if it is the one wanted, else makes it. */
static int shard_of(struct source *source, const char *path, const char *shard_path, const struct tokenizer *tokenizer,
                    struct tokenizer_work *work, const struct trainset_options *options, struct shard *out,
                    bool *reused, struct shu_error *err) {
    char digest[65], data[65], key[65];
    uint32_t vocab = (uint32_t)tokenizer_count(tokenizer);
    *reused = false;
    int status = tokenizer_digest(tokenizer, work, digest, err);
    if (status) return status;
    if (source->kind == SOURCE_SHARD) {
        status = shard_open(path, out, err);
        if (!status && (status = check_shard(out, path, digest, vocab, options, err)) != 0) shard_close(out);
        return status;
    }
    if ((status = source_hash(source, data, err)) != 0) return status;
    shard_key(data, digest, options, key);
    if (file_exists(shard_path) && !shard_open(shard_path, out, NULL)) {
        *reused = strcmp(out->key, key) == 0 && !check_shard(out, shard_path, digest, vocab, options, NULL);
        if (*reused) return SHU_OK;
        shard_close(out);
    }
    if (file_same(path, shard_path))
        return SHU_FAIL(err, SHU_E_USAGE, "%s would be replaced by its own shard; take another folder", path);
    if (options->keep && file_exists(shard_path))
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "%s: the data (or how it is read) is not that of this run; it can only go on with what %s was",
                        shard_path, path);
    status = tokenise(source, path, shard_path, tokenizer, work, options, key, digest, err);
    return status ? status : shard_open(shard_path, out, err);
}

static void fill_report(const struct trainset *set, bool reused, struct trainset_report *out) {
    const struct shard_counts *counts = &set->shard.counts;
    *out = (struct trainset_report){.lines = (int64_t)counts->lines,
                                    .sequences = (int64_t)counts->sequences,
                                    .held_out = set->parts[1].unit_count * (set->shard.pairs ? 2 : 1),
                                    .tokens = (int64_t)counts->tokens,
                                    .loss_tokens = (int64_t)counts->loss_tokens,
                                    .rejected = (int64_t)counts->rejected,
                                    .cut = (int64_t)counts->cut,
                                    .reused = reused};
}

int trainset_open(const char *path, const char *shard_path, const struct tokenizer *tokenizer,
                  const struct trainset_options *options, struct trainset **out, struct trainset_report *report,
                  struct shu_error *err) {
    struct source source;
    struct tokenizer_work *work = NULL;
    struct trainset *set = NULL;
    bool reused = false;
    int status = source_open(path, &source, err);
    if (status) return status;
    status = tokenizer_work_new(tokenizer, &work, err);
    if (!status && !(set = mem_calloc(1, sizeof *set))) status = SHU_FAIL(err, SHU_E_NOMEM, "out of memory");
    if (!status) status = shard_of(&source, path, shard_path, tokenizer, work, options, &set->shard, &reused, err);
    if (!status) {
        set->seed = options->seed;
        status = trainset_prepare(set, options->context, err);
    }
    tokenizer_work_free(work);
    source_close(&source);
    if (!status && set->parts[0].unit_count == 0)
        status = SHU_FAIL(err, SHU_E_FORMAT,
                          "%s: every sequence is held out for evaluation; lower held_out or add data", path);
    if (status) {
        trainset_close(set);
        return status;
    }
    fill_report(set, reused, report);
    *out = set;
    return SHU_OK;
}

const char *trainset_key(const struct trainset *set) {
    return set->shard.key;
}

int64_t trainset_sequences(const struct trainset *set) {
    return (int64_t)set->shard.counts.sequences;
}

int64_t trainset_line(const struct trainset *set, int64_t sequence) {
    return (int64_t)set->shard.index[sequence].line;
}

int trainset_passage_count(const struct trainset *set, int64_t sequence) {
    return (int)set->shard.index[sequence].passages;
}

struct span trainset_passage(const struct trainset *set, int64_t sequence, int index) {
    return shard_passage(&set->shard, sequence, index);
}
