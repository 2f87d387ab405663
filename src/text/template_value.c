/* Chat templates: values, their order and equality, containers, conversion from JSON. */
#include "text/template.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- support */

int template_charge(struct interp *in, uint64_t steps) {
    in->steps += steps;
    if (in->steps <= in->max_steps) return 0;
    return TPL_LIMIT(in, "the template did more than %llu steps: a loop that does not end, or far too much work",
                     (unsigned long long)in->max_steps);
}

void *template_alloc(struct interp *in, size_t count, size_t bytes_each) {
    size_t bytes;
    void *memory = NULL;
    if (!size_mul(count ? count : 1, bytes_each, &bytes)) memory = arena_alloc(&in->arena, bytes);
    if (!memory) {
        in->placed = false;
        SHU_FAIL(in->err, SHU_E_NOMEM, "the template needs more memory than it may use (%zu MiB)",
                 in->arena.max_bytes >> 20);
    }
    return memory;
}

int emit(struct interp *in, const void *bytes, size_t count) {
    int status = template_charge(in, count / 64 + 1);
    if (status || count == 0) return status;
    status = buf_append(&in->out, bytes, count);
    if (status == SHU_E_RANGE) return TPL_LIMIT(in, "the template's output is longer than %zu bytes", in->out.max);
    if (status)
        return SHU_FAIL(in->err, SHU_E_NOMEM, "no memory for %zu bytes of template output", in->out.len + count);
    return 0;
}

int emit_text(struct interp *in, const char *text) {
    return emit(in, text, strlen(text));
}

int scratch_end(struct interp *in, size_t mark, struct value *out) {
    int status = value_string(in, in->out.data ? in->out.data + mark : "", in->out.len - mark, out);
    in->out.len = mark;
    return status;
}

const char *value_kind_name(struct value value) {
    static const char *const names[] = {"",          "Undefined", "NoneType", "bool",   "int",        "float",
                                        "str",       "list",      "tuple",    "range",  "generator",  "dict",
                                        "Namespace", "Macro",     "function", "method", "LoopContext"};
    static const char *const views[] = {"range", "range", "dict_keys", "dict_values", "dict_items"};
    return value.kind == VAL_VIEW ? views[value.flag] : names[value.kind];
}

/* ----------------------------------------------------------- constructors */

int value_borrow(struct interp *in, const char *data, size_t bytes, struct value *out) {
    struct text *text = template_alloc(in, 1, sizeof *text);
    if (!text) return SHU_E_NOMEM;
    *text = (struct text){data, bytes};
    *out = (struct value){.kind = VAL_STRING, .text = text};
    return 0;
}

int value_string(struct interp *in, const char *data, size_t bytes, struct value *out) {
    char *copy = template_alloc(in, bytes + 1, 1);
    if (!copy) return SHU_E_NOMEM;
    if (bytes) memcpy(copy, data, bytes);
    int status = template_charge(in, bytes / 64);
    return status ? status : value_borrow(in, copy, bytes, out);
}

int value_undefined(struct interp *in, const char *before, const struct text *name, const char *after,
                    struct value *out) {
    char message[160];
    int shown = name ? (int)(name->bytes < 80 ? name->bytes : 80) : 0;
    snprintf(message, sizeof message, "%s%.*s%s", before, shown, name ? name->data : "", after);
    int status = value_string(in, message, strlen(message), out);
    out->kind = VAL_UNDEFINED;
    return status;
}

int value_sequence(struct interp *in, enum value_kind kind, size_t count, struct value *out) {
    struct sequence *sequence = template_alloc(in, 1, sizeof *sequence);
    if (!sequence) return SHU_E_NOMEM;
    sequence->count = count;
    sequence->items = template_alloc(in, count, sizeof *sequence->items);
    if (!sequence->items) return SHU_E_NOMEM;
    *out = (struct value){.kind = (uint8_t)kind, .sequence = sequence};
    return template_charge(in, count / 8);
}

/* ------------------------------------------------------------ inspection */

bool value_truth(struct value value) {
    switch (value.kind) {
    case VAL_UNDEFINED:
    case VAL_NONE:
        return false;
    case VAL_BOOL:
        return value.boolean;
    case VAL_INT:
        return value.integer != 0;
    case VAL_FLOAT:
        return value.real != 0;
    case VAL_STRING:
        return value.text->bytes != 0;
    case VAL_LIST:
    case VAL_TUPLE:
    case VAL_VIEW:
        return value.sequence->count != 0;
    case VAL_DICT:
        return value.dict->count != 0;
    case VAL_LOOP:
        return true;
    default:
        return true;
    }
}

int value_length(struct interp *in, struct value value, int64_t *out) {
    switch (value.kind) {
    case VAL_UNDEFINED:
        *out = 0;
        return 0;
    case VAL_STRING:
        *out = (int64_t)text_length(value.text);
        return template_charge(in, value.text->bytes / 256);
    case VAL_LIST:
    case VAL_TUPLE:
    case VAL_VIEW:
        *out = (int64_t)value.sequence->count;
        return 0;
    case VAL_DICT:
        *out = (int64_t)value.dict->count;
        return 0;
    case VAL_LOOP:
        if (loop_complete(in, value.loop)) return SHU_E_USAGE;
        *out = (int64_t)value.loop->count;
        return 0;
    default:
        return TPL_FAIL(in, "a value of type %s has no length", value_kind_name(value));
    }
}

static int characters(struct interp *in, const struct text *text, struct sequence **out) {
    struct value list;
    int status = value_sequence(in, VAL_LIST, text_length(text), &list);
    size_t at = 0;
    for (size_t i = 0; !status && i < list.sequence->count; i++) {
        int n;
        text_scalar(text, at, &n);
        status = value_borrow(in, text->data + at, (size_t)n, &list.sequence->items[i]);
        at += (size_t)n;
    }
    *out = list.sequence;
    return status;
}

static int iterate_dict(struct interp *in, const struct dict *dict, struct sequence **out) {
    struct value list;
    int status = value_sequence(in, VAL_LIST, dict->count, &list);
    for (size_t i = 0; !status && i < dict->count; i++) list.sequence->items[i] = dict->entries[i].key;
    *out = list.sequence;
    return status;
}

int value_iterate(struct interp *in, struct value value, struct sequence **out) {
    struct value list;
    switch (value.kind) {
    case VAL_LIST:
    case VAL_TUPLE:
    case VAL_VIEW:
        *out = value.sequence;
        return 0;
    case VAL_ITERATOR: {
        struct sequence *source = value.sequence, *rest = template_alloc(in, 1, sizeof *rest);
        if (!rest) return SHU_E_NOMEM;
        *rest = (struct sequence){source->items + source->next, source->count - source->next, 0};
        source->next = source->count;
        *out = rest;
        return 0;
    }
    case VAL_STRING:
        return characters(in, value.text, out);
    case VAL_DICT:
        return iterate_dict(in, value.dict, out);
    case VAL_UNDEFINED:
        if (value_sequence(in, VAL_LIST, 0, &list)) return SHU_E_NOMEM;
        *out = list.sequence;
        return 0;
    default:
        return TPL_FAIL(in, "a value of type %s cannot be iterated over", value_kind_name(value));
    }
}

/* ------------------------------------------------------ equality and order */

static int sequences_equal(struct interp *in, const struct sequence *a, const struct sequence *b, int depth,
                           bool *out) {
    *out = a->count == b->count;
    int status = 0;
    for (size_t i = 0; !status && *out && i < a->count; i++)
        status = value_equal(in, a->items[i], b->items[i], depth, out);
    return status;
}

static int dicts_equal(struct interp *in, const struct dict *a, const struct dict *b, int depth, bool *out) {
    *out = a->count == b->count;
    int status = 0;
    for (size_t i = 0; !status && *out && i < a->count; i++) {
        const struct value *other;
        status = dict_get(in, b, a->entries[i].key, &other);
        *out = other != NULL;
        if (!status && other) status = value_equal(in, a->entries[i].value, *other, depth, out);
    }
    return status;
}

int value_equal(struct interp *in, struct value a, struct value b, int depth, bool *out) {
    if (depth > TPL_MAX_VALUE_DEPTH)
        return TPL_LIMIT(in, "lists nested more than %d deep cannot be compared", TPL_MAX_VALUE_DEPTH);
    int status = template_charge(in, 1);
    if (status) return status;
    if (value_is_number(a) && value_is_number(b)) {
        *out = value_is_integer(a) && value_is_integer(b) ? value_integer(a) == value_integer(b)
                                                          : value_real(a) == value_real(b);
        return 0;
    }
    *out = false;
    if (a.kind != b.kind) return 0;
    switch (a.kind) {
    case VAL_UNDEFINED:
    case VAL_NONE:
        *out = true;
        return 0;
    case VAL_STRING:
        *out = text_equal(a.text, b.text);
        return template_charge(in, a.text->bytes / 256);
    case VAL_LIST:
    case VAL_TUPLE:
        return sequences_equal(in, a.sequence, b.sequence, depth + 1, out);
    case VAL_VIEW:
        if (a.flag != b.flag || a.flag == FLAG_VIEW_VALUES) return 0;
        return sequences_equal(in, a.sequence, b.sequence, depth + 1, out);
    case VAL_DICT:
        return dicts_equal(in, a.dict, b.dict, depth + 1, out);
    default:
        *out = a.sequence == b.sequence;
        return 0;
    }
}

static int compare_sequences(struct interp *in, const struct sequence *a, const struct sequence *b, int depth,
                             int *out) {
    for (size_t i = 0; i < a->count && i < b->count; i++) {
        bool equal;
        int status = value_equal(in, a->items[i], b->items[i], depth, &equal);
        if (status) return status;
        if (!equal) return value_compare(in, a->items[i], b->items[i], depth, out);
    }
    *out = a->count < b->count ? -1 : a->count > b->count;
    return 0;
}

int value_compare(struct interp *in, struct value a, struct value b, int depth, int *out) {
    if (depth > TPL_MAX_VALUE_DEPTH)
        return TPL_LIMIT(in, "lists nested more than %d deep cannot be compared", TPL_MAX_VALUE_DEPTH);
    int status = template_charge(in, 1);
    if (status) return status;
    if (value_is_number(a) && value_is_number(b)) {
        if (value_is_integer(a) && value_is_integer(b)) {
            int64_t x = value_integer(a), y = value_integer(b);
            *out = x < y ? -1 : x > y;
        } else { /* 2 = neither less, equal nor greater (NaN) */
            double x = value_real(a), y = value_real(b);
            *out = x < y ? -1 : x > y ? 1 : x == y ? 0 : 2;
        }
        return 0;
    }
    if (a.kind == VAL_STRING && b.kind == VAL_STRING) { /* UTF-8 sorts like code points */
        size_t shorter = a.text->bytes < b.text->bytes ? a.text->bytes : b.text->bytes;
        int order = shorter ? memcmp(a.text->data, b.text->data, shorter) : 0;
        *out = order ? (order < 0 ? -1 : 1) : a.text->bytes < b.text->bytes ? -1 : a.text->bytes > b.text->bytes;
        return template_charge(in, shorter / 256);
    }
    if (a.kind == b.kind && (a.kind == VAL_LIST || a.kind == VAL_TUPLE))
        return compare_sequences(in, a.sequence, b.sequence, depth + 1, out);
    if (a.kind == VAL_UNDEFINED || b.kind == VAL_UNDEFINED)
        return TPL_FAIL(in, "%.*s", (int)(a.kind == VAL_UNDEFINED ? a : b).text->bytes,
                        (a.kind == VAL_UNDEFINED ? a : b).text->data);
    return TPL_FAIL(in, "values of type %s and %s have no order", value_kind_name(a), value_kind_name(b));
}

static int contains_text(struct interp *in, const struct text *text, struct value item, bool *out) {
    if (item.kind != VAL_STRING)
        return TPL_FAIL(in, "\"in\" a string needs a string on its left, found %s", value_kind_name(item));
    *out = item.text->bytes == 0 ||
           (text->bytes && memmem(text->data, text->bytes, item.text->data, item.text->bytes) != NULL);
    return template_charge(in, text->bytes / 64);
}

int value_contains(struct interp *in, struct value container, struct value item, bool *out) {
    *out = false;
    if (container.kind == VAL_STRING) return contains_text(in, container.text, item, out);
    if (container.kind == VAL_DICT) {
        const struct value *found;
        int status = dict_get(in, container.dict, item, &found);
        *out = found != NULL;
        return status;
    }
    struct sequence *items;
    int status = value_iterate(in, container, &items);
    for (size_t i = 0; !status && !*out && i < items->count; i++)
        status = value_equal(in, items->items[i], item, 0, out);
    return status;
}

/* ------------------------------------------------------------------ dicts */

enum { DICT_SMALL = 8 }; /* up to here a linear search is faster than hashing */

static uint64_t hash_bytes(const void *data, size_t bytes) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 1099511628211u;
    return hash;
}

/* Equal numbers of different types have equal hashes. Lists and dicts cannot be keys. */
static int hash_value(struct interp *in, struct value value, int depth, uint64_t *out) {
    *out = 0;
    if (value_is_number(value)) {
        double real = value_real(value);
        if (real != 0) *out = hash_bytes(&real, sizeof real);
        return 0;
    }
    switch (value.kind) {
    case VAL_STRING:
        *out = hash_bytes(value.text->data, value.text->bytes);
        return template_charge(in, value.text->bytes / 64);
    case VAL_NONE:
    case VAL_UNDEFINED:
        *out = value.kind;
        return 0;
    case VAL_TUPLE:
        if (depth > TPL_MAX_VALUE_DEPTH)
            return TPL_LIMIT(in, "tuples nested more than %d deep cannot be keys", TPL_MAX_VALUE_DEPTH);
        for (size_t i = 0; i < value.sequence->count; i++) {
            uint64_t hash;
            int status = hash_value(in, value.sequence->items[i], depth + 1, &hash);
            if (!status) status = template_charge(in, 1);
            if (status) return status;
            *out = *out * 1099511628211u + hash;
        }
        return 0;
    case VAL_MACRO:
    case VAL_FUNCTION:
    case VAL_NAMESPACE:
        *out = (uintptr_t)value.macro >> 4;
        return 0;
    default:
        return TPL_FAIL(in, "a value of type %s cannot be the key of a dict", value_kind_name(value));
    }
}

int dict_new(struct interp *in, struct value *out) {
    struct dict *dict = template_alloc(in, 1, sizeof *dict);
    if (!dict) return SHU_E_NOMEM;
    *out = (struct value){.kind = VAL_DICT, .dict = dict};
    return 0;
}

static int find_entry(struct interp *in, const struct dict *dict, struct value key, uint64_t hash,
                      struct dict_entry **out) {
    bool equal = false;
    int status = 0;
    *out = NULL;
    if (!dict->index) {
        for (size_t i = 0; !status && i < dict->count; i++) {
            if (dict->entries[i].hash != hash) continue;
            status = value_equal(in, dict->entries[i].key, key, 0, &equal);
            if (equal) *out = &dict->entries[i];
            if (equal) break;
        }
        return status;
    }
    for (size_t slot = hash & (dict->index_cap - 1); !status && dict->index[slot];
         slot = (slot + 1) & (dict->index_cap - 1)) {
        struct dict_entry *entry = &dict->entries[dict->index[slot] - 1];
        if (entry->hash == hash) status = value_equal(in, entry->key, key, 0, &equal);
        if (!status) status = template_charge(in, 1); /* colliding keys cost the template, not us */
        if (equal) *out = entry;
        if (equal) break;
    }
    return status;
}

static int grow_dict(struct interp *in, struct dict *dict) {
    size_t cap = dict->cap ? dict->cap * 2 : 4;
    struct dict_entry *entries = template_alloc(in, cap, sizeof *entries);
    if (!entries) return SHU_E_NOMEM;
    if (dict->count) memcpy(entries, dict->entries, dict->count * sizeof *entries);
    dict->entries = entries;
    dict->cap = cap;
    if (cap <= DICT_SMALL) return 0;
    dict->index_cap = cap * 2;
    dict->index = template_alloc(in, dict->index_cap, sizeof *dict->index);
    if (!dict->index) return SHU_E_NOMEM;
    for (size_t i = 0; i < dict->count; i++) {
        size_t slot = entries[i].hash & (dict->index_cap - 1);
        while (dict->index[slot]) slot = (slot + 1) & (dict->index_cap - 1);
        dict->index[slot] = (uint32_t)i + 1;
    }
    return 0;
}

int dict_set(struct interp *in, struct dict *dict, struct value key, struct value value) {
    uint64_t hash;
    struct dict_entry *entry;
    int status = hash_value(in, key, 0, &hash);
    if (!status) status = find_entry(in, dict, key, hash, &entry);
    if (status) return status;
    if (entry) {
        entry->value = value;
        return 0;
    }
    if (dict->count == dict->cap && (status = grow_dict(in, dict))) return status;
    dict->entries[dict->count++] = (struct dict_entry){key, value, hash};
    if (!dict->index) return 0;
    size_t slot = hash & (dict->index_cap - 1);
    while (dict->index[slot]) slot = (slot + 1) & (dict->index_cap - 1);
    dict->index[slot] = (uint32_t)dict->count;
    return 0;
}

int dict_get(struct interp *in, const struct dict *dict, struct value key, const struct value **out) {
    uint64_t hash;
    struct dict_entry *entry = NULL;
    *out = NULL;
    int status = hash_value(in, key, 0, &hash);
    if (!status) status = find_entry(in, dict, key, hash, &entry);
    if (!status && entry) *out = &entry->value;
    return status;
}

int dict_get_text(struct interp *in, const struct dict *dict, const struct text *key, const struct value **out) {
    return dict_get(in, dict, (struct value){.kind = VAL_STRING, .text = key}, out);
}

/* -------------------------------------------------------------- from JSON */

static int list_from_json(struct interp *in, const json_t *json, int depth, struct value *out) {
    int status = value_sequence(in, VAL_LIST, json_array_size(json), out);
    for (size_t i = 0; !status && i < out->sequence->count; i++)
        status = value_from_json(in, json_array_get(json, i), depth + 1, &out->sequence->items[i]);
    return status;
}

static int dict_from_json(struct interp *in, const json_t *json, int depth, struct value *out) {
    int status = dict_new(in, out);
    json_t *object = (json_t *)(uintptr_t)json; /* jansson's iterator takes no const, but changes nothing */
    for (void *it = json_object_iter(object); !status && it; it = json_object_iter_next(object, it)) {
        struct value key, value;
        status = value_borrow(in, json_object_iter_key(it), json_object_iter_key_len(it), &key);
        if (!status) status = value_from_json(in, json_object_iter_value(it), depth + 1, &value);
        if (!status) status = dict_set(in, out->dict, key, value);
    }
    return status;
}

int value_from_json(struct interp *in, const json_t *json, int depth, struct value *out) {
    if (depth > TPL_MAX_VALUE_DEPTH) return TPL_LIMIT(in, "variables nested more than %d deep", TPL_MAX_VALUE_DEPTH);
    switch (json_typeof(json)) {
    case JSON_OBJECT:
        return dict_from_json(in, json, depth, out);
    case JSON_ARRAY:
        return list_from_json(in, json, depth, out);
    case JSON_STRING:
        return value_borrow(in, json_string_value(json), json_string_length(json), out);
    case JSON_INTEGER:
        *out = value_int(json_integer_value(json));
        return 0;
    case JSON_REAL:
        *out = value_float(json_real_value(json));
        return 0;
    case JSON_TRUE:
        *out = value_bool(true);
        return 0;
    case JSON_FALSE:
        *out = value_bool(false);
        return 0;
    default:
        *out = value_of(VAL_NONE);
        return 0;
    }
}
