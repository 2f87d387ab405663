/* Recipes: defaults per method, one table of keys that YAML, command line and JSON share. */
#include "train/train.h"

#include <math.h>
#include <string.h>

#define RECIPE_BYTES_MAX ((size_t)1 << 20)

/* ------------------------------------------------------------------- keys */

enum key_kind { KEY_INT, KEY_INT64, KEY_REAL, KEY_FLOAT, KEY_BOOL, KEY_CHOICE, KEY_TARGETS };

struct choice {
    const char *name; /* NULL ends the list */
    unsigned value;
};
static const struct choice precisions[] = {{"f32", GEMM_F32}, {"bf16", GEMM_BF16}, {NULL, 0}};
static const struct choice states[] = {{"f32", DT_F32}, {"bf16", DT_BF16}, {NULL, 0}};
static const struct choice schedules[] = {
    {"cosine", SCHEDULE_COSINE}, {"wsd", SCHEDULE_WSD}, {"constant", SCHEDULE_CONSTANT}, {NULL, 0}};
static const struct choice archs[] = {{"llama", ARCH_LLAMA}, {"qwen2", ARCH_QWEN2}, {"qwen3", ARCH_QWEN3}, {NULL, 0}};
static const struct choice target_names[] = {{"q", DECODER_Q},       {"k", DECODER_K},       {"v", DECODER_V},
                                             {"o", DECODER_O},       {"gate", DECODER_GATE}, {"up", DECODER_UP},
                                             {"down", DECODER_DOWN}, {"all", DECODER_ALL},   {NULL, 0}};

/* Methods that a key counts for. */
enum { FOR_ADAPTERS = 1 << TRAIN_LORA | 1 << TRAIN_DPO, FOR_WEIGHTS = 1 << TRAIN_FULL | 1 << TRAIN_SCRATCH };
enum { FOR_ALL = FOR_ADAPTERS | FOR_WEIGHTS, FOR_TEXT = FOR_ALL & ~(1 << TRAIN_DPO) };

struct key {
    const char *name;
    enum key_kind kind;
    size_t offset;
    double min, max;
    const struct choice *choices;
    unsigned methods;
};

#define AT(field) offsetof(struct recipe, field)
static const struct key recipe_keys[] = {
    {"precision", KEY_CHOICE, AT(precision), 0, 0, precisions, FOR_ALL},
    {"rank", KEY_INT, AT(rank), 1, 1024, NULL, FOR_ADAPTERS},
    {"alpha", KEY_REAL, AT(alpha), 1e-3, 1e5, NULL, FOR_ADAPTERS},
    {"dropout", KEY_REAL, AT(dropout), 0, 0.9, NULL, FOR_ADAPTERS},
    {"rank_stabilised", KEY_BOOL, AT(rank_stabilised), 0, 0, NULL, FOR_ADAPTERS},
    {"targets", KEY_TARGETS, AT(targets), 0, 0, target_names, FOR_ADAPTERS},
    {"context", KEY_INT, AT(context), 8, 1 << 20, NULL, FOR_ALL},
    {"batch", KEY_INT, AT(batch), 1, 1 << 16, NULL, FOR_ALL},
    {"micro_batch", KEY_INT, AT(micro_batch), 1, 1 << 16, NULL, FOR_ALL},
    {"steps", KEY_INT64, AT(steps), 0, 1e12, NULL, FOR_ALL},
    {"epochs", KEY_REAL, AT(epochs), 0, 1000, NULL, FOR_ALL},
    {"schedule", KEY_CHOICE, AT(schedule), 0, 0, schedules, FOR_ALL},
    {"learning_rate", KEY_REAL, AT(learning_rate), 1e-9, 10, NULL, FOR_ALL},
    {"min_learning_rate", KEY_REAL, AT(min_learning_rate), 0, 10, NULL, FOR_ALL},
    {"warmup", KEY_REAL, AT(warmup), 0, 1, NULL, FOR_ALL},
    {"decay", KEY_REAL, AT(decay), 0, 1, NULL, FOR_ALL},
    {"beta1", KEY_REAL, AT(beta1), 0, 0.9999, NULL, FOR_ALL},
    {"beta2", KEY_REAL, AT(beta2), 0, 0.999999, NULL, FOR_ALL},
    {"eps", KEY_REAL, AT(eps), 1e-12, 1e-2, NULL, FOR_ALL},
    {"weight_decay", KEY_REAL, AT(weight_decay), 0, 1, NULL, FOR_ALL},
    {"clip", KEY_REAL, AT(clip), 0, 1e6, NULL, FOR_ALL},
    {"state_type", KEY_CHOICE, AT(state_type), 0, 0, states, FOR_WEIGHTS},
    {"recompute", KEY_BOOL, AT(recompute), 0, 0, NULL, FOR_ALL},
    {"all_tokens", KEY_BOOL, AT(all_tokens), 0, 0, NULL, FOR_TEXT},
    {"cut", KEY_BOOL, AT(cut), 0, 0, NULL, FOR_ALL},
    {"dpo_beta", KEY_REAL, AT(dpo_beta), 1e-4, 100, NULL, 1 << TRAIN_DPO},
    {"spike", KEY_REAL, AT(spike), 0, 1e6, NULL, FOR_ALL},
    {"patience", KEY_INT, AT(patience), 0, 1 << 20, NULL, FOR_ALL},
    {"held_out", KEY_REAL, AT(held_out), 0, 0.9, NULL, FOR_ALL},
    {"eval_every", KEY_INT64, AT(eval_every), 0, 1e12, NULL, FOR_ALL},
    {"checkpoint_every", KEY_INT64, AT(checkpoint_every), 0, 1e12, NULL, FOR_ALL},
    {"seed", KEY_INT64, AT(seed), 0, 9007199254740991.0, NULL, FOR_ALL},
    {"watts", KEY_REAL, AT(watts), 0, 1e7, NULL, FOR_ALL},
    {"price_per_kwh", KEY_REAL, AT(price_per_kwh), 0, 1e6, NULL, FOR_ALL},
};
static const struct key network_keys[] = {
    {"arch", KEY_CHOICE, AT(network.arch), 0, 0, archs, 1 << TRAIN_SCRATCH},
    {"layers", KEY_INT, AT(network.layers), 1, 1024, NULL, 1 << TRAIN_SCRATCH},
    {"width", KEY_INT, AT(network.width), 8, 1 << 16, NULL, 1 << TRAIN_SCRATCH},
    {"heads", KEY_INT, AT(network.heads), 1, 1024, NULL, 1 << TRAIN_SCRATCH},
    {"kv_heads", KEY_INT, AT(network.kv_heads), 1, 1024, NULL, 1 << TRAIN_SCRATCH},
    {"head_dim", KEY_INT, AT(network.head_dim), 2, HEAD_DIM_MAX, NULL, 1 << TRAIN_SCRATCH},
    {"ffn", KEY_INT, AT(network.ffn), 8, 1 << 18, NULL, 1 << TRAIN_SCRATCH},
    {"context", KEY_INT, AT(network.context), 8, 1 << 20, NULL, 1 << TRAIN_SCRATCH},
    {"norm_eps", KEY_FLOAT, AT(network.norm_eps), 1e-8, 1e-2, NULL, 1 << TRAIN_SCRATCH},
    {"rope_base", KEY_REAL, AT(network.rope_base), 100, 1e9, NULL, 1 << TRAIN_SCRATCH},
    {"tied_output", KEY_BOOL, AT(network.tied_output), 0, 0, NULL, 1 << TRAIN_SCRATCH},
};
#define COUNT(table) (sizeof(table) / sizeof *(table))

static const char *const method_names[TRAIN_METHODS] = {"lora", "full", "scratch", "dpo"};

const char *train_method_name(enum train_method method) {
    return (unsigned)method < TRAIN_METHODS ? method_names[method] : "unknown";
}

bool train_method_find(const char *name, enum train_method *out) {
    for (int i = 0; i < TRAIN_METHODS; i++)
        if (strcmp(method_names[i], name) == 0) return *out = (enum train_method)i, true;
    return false;
}

/* --------------------------------------------------------------- defaults */

static void full_defaults(struct recipe *out) {
    out->learning_rate = 2e-5;
    out->weight_decay = 0.01;
    out->epochs = 2;
    out->state_type = DT_BF16;
}

/* About 10 million parameters with a vocabulary of 8,192. */
static void scratch_defaults(struct recipe *out) {
    out->learning_rate = 1e-3;
    out->weight_decay = 0.1;
    out->beta2 = 0.95;
    out->schedule = SCHEDULE_WSD;
    out->warmup = 0.02;
    out->epochs = 1;
    out->batch = 16;
    out->micro_batch = 4;
    out->all_tokens = true;
    out->held_out = 0.005;
    out->eval_every = out->checkpoint_every = 200;
    out->network = (struct decoder_config){.arch = ARCH_LLAMA,
                                           .layers = 6,
                                           .width = 320,
                                           .heads = 5,
                                           .kv_heads = 5,
                                           .head_dim = 64,
                                           .ffn = 864,
                                           .context = 2048,
                                           .norm_eps = 1e-5f,
                                           .rope_base = 10000,
                                           .tied_output = true};
}

void recipe_defaults(enum train_method method, struct recipe *out) {
    *out = (struct recipe){
        .method = method,
        .precision = GEMM_BF16,
        .rank = 16,
        .alpha = 32,
        .targets = DECODER_ALL,
        .context = 512,
        .batch = 8,
        .micro_batch = 1,
        .epochs = 3,
        .schedule = SCHEDULE_COSINE,
        .learning_rate = 2e-4,
        .warmup = 0.03,
        .decay = 0.2,
        .beta1 = 0.9,
        .beta2 = 0.999,
        .eps = 1e-8,
        .clip = 1.0,
        .state_type = DT_F32,
        .dpo_beta = 0.1,
        .spike = 6,
        .held_out = 0.02,
        .eval_every = 50,
        .checkpoint_every = 50,
        .seed = 1,
        .watts = 65,
    };
    if (method == TRAIN_FULL) full_defaults(out);
    if (method == TRAIN_SCRATCH) scratch_defaults(out);
    if (method == TRAIN_DPO) {
        out->learning_rate = 2e-5;
        out->epochs = 1;
    }
}

/* ---------------------------------------------------------------- storing */

static int list_choices(const struct choice *choices, struct buf *out) {
    int status = SHU_OK;
    for (int i = 0; choices[i].name && !status; i++) status = buf_printf(out, "%s%s", i ? "|" : "", choices[i].name);
    return status;
}

/* What a key takes, in words. */
static int describe(const struct key *key, struct buf *out) {
    switch (key->kind) {
    case KEY_INT:
    case KEY_INT64:
        return buf_printf(out, "a whole number from %.16g to %.16g", key->min, key->max);
    case KEY_REAL:
    case KEY_FLOAT:
        return buf_printf(out, "a number from %.16g to %.16g", key->min, key->max);
    case KEY_BOOL:
        return buf_puts(out, "true or false");
    case KEY_TARGETS:
        if (buf_puts(out, "one of, or a list of, ")) return SHU_E_NOMEM;
        break;
    case KEY_CHOICE:
        break;
    }
    return list_choices(key->choices, out);
}

static bool find_choice(const struct choice *choices, const json_t *value, unsigned *out) {
    const char *name = json_string_value(value);
    for (int i = 0; name && choices[i].name; i++)
        if (strcmp(choices[i].name, name) == 0) return *out = choices[i].value, true;
    return false;
}

static bool read_targets(const struct key *key, const json_t *value, unsigned *out) {
    unsigned one, all = 0;
    size_t i;
    json_t *item;
    if (find_choice(key->choices, value, out)) return true;
    json_array_foreach(value, i, item) {
        if (!find_choice(key->choices, item, &one)) return false;
        all |= one;
    }
    *out = all;
    return all != 0;
}

/* False if the value is not what the key takes. */
static bool store(const struct key *key, const json_t *value, struct recipe *recipe) {
    char *at = (char *)recipe + key->offset;
    double number = json_number_value(value);
    bool whole = json_is_integer(value), fits = json_is_number(value) && number >= key->min && number <= key->max;
    int64_t large = json_integer_value(value);
    int small = (int)large;
    float single = (float)number;
    bool flag = json_is_true(value);
    unsigned choice;
    switch (key->kind) {
    case KEY_INT:
        return whole && fits && memcpy(at, &small, sizeof small);
    case KEY_INT64:
        return whole && fits && memcpy(at, &large, sizeof large);
    case KEY_REAL:
        return fits && memcpy(at, &number, sizeof number);
    case KEY_FLOAT:
        return fits && memcpy(at, &single, sizeof single);
    case KEY_BOOL:
        return json_is_boolean(value) && memcpy(at, &flag, sizeof flag);
    case KEY_CHOICE:
        return find_choice(key->choices, value, &choice) && memcpy(at, &choice, sizeof choice);
    case KEY_TARGETS:
        return read_targets(key, value, &choice) && memcpy(at, &choice, sizeof choice);
    }
    return false;
}

/* ---------------------------------------------------------------- reading */

/* Where a value stands, for messages. */
struct place {
    const char *text, *name, *under;
    size_t bytes;
    struct shu_error *err;
};

static int place_fail(const struct place *place, const char *parent, const char *key, const char *expected) {
    struct buf path = {0}, where = {0};
    int status =
        buf_printf(&path, "%s%s%s%s%s", place->under, *place->under ? "/" : "", parent, *parent ? "/" : "", key);
    if (!status) status = yaml_where(place->text, place->bytes, place->name, path.data, &where);
    status = status ? SHU_FAIL(place->err, SHU_E_NOMEM, "out of memory")
                    : SHU_FAIL(place->err, SHU_E_FORMAT, "%s: %s: %s", where.data, key, expected);
    buf_free(&path);
    buf_free(&where);
    return status;
}

static int fail_unknown(const struct place *place, const char *parent, const char *key, const struct key *keys,
                        size_t count) {
    struct buf text = {.max = 420};
    int status = buf_puts(&text, "no such key; known are ");
    if (!status && keys == recipe_keys) status = buf_puts(&text, "method network ");
    for (size_t i = 0; i < count && !status; i++) status = buf_printf(&text, "%s%s", i ? " " : "", keys[i].name);
    status = place_fail(place, parent, key, text.data ? text.data : "no such key");
    buf_free(&text);
    return status;
}

static int fail_value(const struct place *place, const char *parent, const struct key *key) {
    struct buf text = {.max = 420};
    int status = buf_puts(&text, "expected ");
    if (!status) status = describe(key, &text);
    status = place_fail(place, parent, key->name, text.data && !status ? text.data : "a value of another kind");
    buf_free(&text);
    return status;
}

static const struct key *find_key(const struct key *keys, size_t count, const char *name) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(keys[i].name, name) == 0) return &keys[i];
    return NULL;
}

static int apply(const struct place *place, const char *parent, json_t *object, const struct key *keys, size_t count,
                 struct recipe *recipe) {
    const char *name;
    json_t *value;
    json_object_foreach(object, name, value) {
        bool handled = keys == recipe_keys && (strcmp(name, "method") == 0 || strcmp(name, "network") == 0);
        const struct key *key = handled ? NULL : find_key(keys, count, name);
        if (handled) continue;
        if (!key) return fail_unknown(place, parent, name, keys, count);
        if (!store(key, value, recipe)) return fail_value(place, parent, key);
    }
    return SHU_OK;
}

static int apply_all(const struct place *place, json_t *object, struct recipe *recipe) {
    json_t *method = json_object_get(object, "method"), *network = json_object_get(object, "network");
    enum train_method found;
    if (!json_is_object(object)) return place_fail(place, "", "", "expected keys and values");
    if (method) {
        const char *name = json_string_value(method);
        if (!name || !train_method_find(name, &found))
            return place_fail(place, "", "method", "expected lora|full|scratch|dpo");
        if (found != recipe->method) recipe_defaults(found, recipe);
    }
    int status = apply(place, "", object, recipe_keys, COUNT(recipe_keys), recipe);
    if (status || !network) return status;
    if (recipe->method != TRAIN_SCRATCH)
        return place_fail(place, "", "network", "only `method: scratch` describes a network; others take the base's");
    if (!json_is_object(network)) return place_fail(place, "", "network", "expected keys and values");
    return apply(place, "network", network, network_keys, COUNT(network_keys), recipe);
}

static json_t *descend(json_t *tree, const char *path) {
    while (*path && tree) {
        size_t bytes = strcspn(path, "/");
        char key[64];
        if (bytes >= sizeof key) return NULL;
        memcpy(key, path, bytes);
        key[bytes] = 0;
        tree = json_object_get(tree, key);
        path += bytes + (path[bytes] == '/');
    }
    return tree;
}

int recipe_read_text(const char *text, size_t bytes, const char *name, const char *under, struct recipe *recipe,
                     struct shu_error *err) {
    struct place place = {.text = text, .bytes = bytes, .name = name, .under = under, .err = err};
    json_t *tree = NULL;
    int status = yaml_parse(text, bytes, name, &tree, err);
    if (status) return status;
    json_t *keys = descend(tree, under);
    if (keys && !json_is_null(keys)) status = apply_all(&place, keys, recipe); /* an empty file changes nothing */
    /* A smaller batch need not say so twice. */
    if (json_object_get(keys, "batch") && !json_object_get(keys, "micro_batch") && recipe->micro_batch > recipe->batch)
        recipe->micro_batch = recipe->batch;
    json_decref(tree);
    return status;
}

int recipe_read(const char *path, struct recipe *recipe, struct shu_error *err) {
    struct buf text = {0};
    int status = file_read(path, RECIPE_BYTES_MAX, &text, err);
    if (!status) status = recipe_read_text(text.data ? text.data : "", text.len, path, "", recipe, err);
    buf_free(&text);
    return status;
}

int recipe_set(struct recipe *recipe, const char *key, const char *value, const char *shown, struct shu_error *err) {
    const struct key *found = find_key(recipe_keys, COUNT(recipe_keys), key);
    struct buf expected = {0};
    json_t *parsed = NULL;
    if (!found) return SHU_FAIL(err, SHU_E_USAGE, "%s: no key \"%s\"; docs/train.md lists them", shown, key);
    int status = yaml_parse(value, strlen(value), key, &parsed, NULL);
    if (status || !store(found, parsed, recipe)) {
        status = describe(found, &expected);
        status = SHU_FAIL(err, SHU_E_USAGE, "%s: expected %s, found \"%s\"", shown,
                          expected.data && !status ? expected.data : "another value", value);
    }
    buf_free(&expected);
    json_decref(parsed);
    return status;
}

/* --------------------------------------------------------------- checking */

static int check_steps(const struct recipe *recipe, struct shu_error *err) {
    if (recipe->micro_batch > recipe->batch)
        return SHU_FAIL(err, SHU_E_USAGE, "micro_batch: expected at most batch (%d), found %d", recipe->batch,
                        recipe->micro_batch);
    if (recipe->steps == 0 && recipe->epochs == 0)
        return SHU_FAIL(err, SHU_E_USAGE, "steps: expected steps or epochs above 0, found neither");
    if (recipe->min_learning_rate > recipe->learning_rate)
        return SHU_FAIL(err, SHU_E_USAGE, "min_learning_rate: expected at most learning_rate (%g), found %g",
                        recipe->learning_rate, recipe->min_learning_rate);
    double decay = recipe->schedule == SCHEDULE_WSD ? recipe->decay : 0;
    if (recipe->warmup + decay > 1)
        return SHU_FAIL(err, SHU_E_USAGE,
                        "warmup: warmup and decay are shares of the run; expected a sum of at most "
                        "1, found %g",
                        recipe->warmup + decay);
    if ((int64_t)recipe->micro_batch * recipe->context > (int64_t)1 << 24)
        return SHU_FAIL(err, SHU_E_USAGE, "micro_batch: %d packs of %d tokens at once are too many; lower it",
                        recipe->micro_batch, recipe->context);
    if (recipe->patience && (recipe->held_out == 0 || recipe->eval_every == 0))
        return SHU_FAIL(err, SHU_E_USAGE, "patience: early stopping needs held_out and eval_every above 0");
    return SHU_OK;
}

static int check_network(const struct decoder_config *network, int context, struct shu_error *err) {
    if (network->heads % network->kv_heads != 0)
        return SHU_FAIL(err, SHU_E_USAGE, "network.kv_heads: %d query heads cannot share %d key heads", network->heads,
                        network->kv_heads);
    if (network->head_dim % 2 != 0)
        return SHU_FAIL(err, SHU_E_USAGE, "network.head_dim: expected an even number, found %d", network->head_dim);
    if (network->context < context)
        return SHU_FAIL(err, SHU_E_USAGE, "network.context: expected at least the recipe's context (%d), found %d",
                        context, network->context);
    return SHU_OK;
}

int recipe_check(const struct recipe *recipe, struct shu_error *err) {
    int status = check_steps(recipe, err);
    if (!status && recipe->method == TRAIN_SCRATCH) status = check_network(&recipe->network, recipe->context, err);
    return status;
}

/* ----------------------------------------------------------------- JSON */

static json_t *targets_to_json(const struct key *key, unsigned targets) {
    json_t *list = json_array();
    for (int i = 0; key->choices[i].name; i++)
        if (key->choices[i].value != DECODER_ALL && targets & key->choices[i].value)
            json_array_append_new(list, json_string(key->choices[i].name));
    return list;
}

static json_t *choice_to_json(const struct key *key, unsigned value) {
    for (int i = 0; key->choices[i].name; i++)
        if (key->choices[i].value == value) return json_string(key->choices[i].name);
    return NULL;
}

static json_t *key_to_json(const struct key *key, const struct recipe *recipe) {
    const char *at = (const char *)recipe + key->offset;
    int small;
    int64_t large;
    double number;
    float single;
    bool flag;
    unsigned choice;
    switch (key->kind) {
    case KEY_INT:
        return memcpy(&small, at, sizeof small), json_integer(small);
    case KEY_INT64:
        return memcpy(&large, at, sizeof large), json_integer(large);
    case KEY_REAL:
        return memcpy(&number, at, sizeof number), json_real(number);
    case KEY_FLOAT:
        return memcpy(&single, at, sizeof single), json_real((double)single);
    case KEY_BOOL:
        return memcpy(&flag, at, sizeof flag), json_boolean(flag);
    case KEY_CHOICE:
        return memcpy(&choice, at, sizeof choice), choice_to_json(key, choice);
    case KEY_TARGETS:
        return memcpy(&choice, at, sizeof choice), targets_to_json(key, choice);
    }
    return NULL;
}

static int table_to_json(const struct key *keys, size_t count, const struct recipe *recipe, json_t *out) {
    int failed = 0;
    for (size_t i = 0; i < count; i++)
        if (keys[i].methods >> recipe->method & 1)
            failed |= json_object_set_new(out, keys[i].name, key_to_json(&keys[i], recipe));
    return failed;
}

json_t *recipe_to_json(const struct recipe *recipe) {
    json_t *out = json_object(), *network = NULL;
    int failed = !out || json_object_set_new(out, "method", json_string(train_method_name(recipe->method)));
    failed = failed || table_to_json(recipe_keys, COUNT(recipe_keys), recipe, out);
    if (recipe->method == TRAIN_SCRATCH) {
        network = json_object();
        failed = failed || !network || table_to_json(network_keys, COUNT(network_keys), recipe, network);
        failed = failed || json_object_set(out, "network", network);
    }
    json_decref(network);
    if (!failed) return out;
    json_decref(out);
    return NULL;
}
