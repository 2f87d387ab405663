/* Grammars: two JSON Schemas into one that demands both (allOf, and keywords beside $ref or anyOf). */
#include "infer/grammar_schema.h"

#include <stdlib.h>
#include <string.h>

static int fail_merge(const char *where, const char *keyword, struct shu_error *err) {
    return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                    "schema, %s: two different \"%s\" cannot be combined: write the combination out", where, keyword);
}

static int no_memory(struct shu_error *err) {
    return SHU_FAIL(err, SHU_E_NOMEM, "no memory to combine schemas");
}

const json_t *schema_resolve(const json_t *root, const char *ref) {
    if (*ref++ != '#') return NULL;
    const json_t *at = root;
    while (at && *ref == '/') {
        char key[256];
        size_t n = 0;
        for (ref++; *ref && *ref != '/'; ref++) {
            if (n + 1 == sizeof key) return NULL;
            bool escaped = ref[0] == '~' && (ref[1] == '0' || ref[1] == '1');
            key[n++] = escaped ? (ref[1] == '0' ? '~' : '/') : *ref;
            ref += escaped;
        }
        key[n] = 0;
        if (json_is_array(at) && n && strspn(key, "0123456789") == n && n < 9)
            at = json_array_get(at, (size_t)strtoul(key, NULL, 10));
        else
            at = json_object_get(at, key);
    }
    return *ref ? NULL : at;
}

/* ------------------------------------------------------------ simple keywords */

bool schema_is_annotation(const char *key) {
    static const char *const names[] = {"title",    "description", "default",  "examples",  "$schema", "$id",
                                        "$comment", "deprecated",  "readOnly", "writeOnly", "$defs",   "definitions"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(key, names[i]) == 0) return true;
    return strncmp(key, "x-", 2) == 0;
}

/* Types as a set of bits; an integer is a number. */
unsigned schema_types(const json_t *type) {
    static const char *const names[] = {"null", "boolean", "integer", "number", "string", "array", "object"};
    unsigned set = 0;
    if (json_is_array(type)) {
        for (size_t i = 0; i < json_array_size(type); i++) {
            unsigned one = json_is_string(json_array_get(type, i)) ? schema_types(json_array_get(type, i)) : 0;
            if (!one) return 0;
            set |= one;
        }
        return set;
    }
    for (size_t i = 0; json_is_string(type) && i < sizeof names / sizeof *names; i++)
        if (strcmp(json_string_value(type), names[i]) == 0) set = 1u << i;
    return set & TYPE_NUMBER ? set | TYPE_INTEGER : set;
}

/* A value of the keyword "type". New reference. */
static json_t *schema_type_list(unsigned types) {
    static const char *const names[] = {"null", "boolean", "integer", "number", "string", "array", "object"};
    json_t *list = json_array();
    for (size_t i = 0; list && i < sizeof names / sizeof *names; i++)
        if ((types >> i & 1) && !(i == 2 && (types & TYPE_NUMBER))) json_array_append_new(list, json_string(names[i]));
    return list;
}

static json_t *common_values(const json_t *a, const json_t *b) {
    json_t *list = json_array();
    for (size_t i = 0; list && i < json_array_size(a); i++)
        for (size_t k = 0; k < json_array_size(b); k++)
            if (schema_equal(json_array_get(a, i), json_array_get(b, k))) {
                json_array_append(list, json_array_get(a, i));
                break;
            }
    return list;
}

static json_t *union_of(const json_t *a, const json_t *b) {
    json_t *list = json_copy((json_t *)(uintptr_t)a);
    for (size_t i = 0; list && i < json_array_size(b); i++) {
        bool known = false;
        for (size_t k = 0; k < json_array_size(list); k++)
            known |= json_equal(json_array_get(list, k), json_array_get(b, i));
        if (!known) json_array_append(list, json_array_get(b, i));
    }
    return list;
}

static json_t *both_patterns(const json_t *a, const json_t *b) {
    json_t *list = json_array();
    for (size_t i = 0; i < 2 && list; i++) {
        const json_t *one = i ? b : a;
        if (!json_is_array(one)) json_array_append(list, (json_t *)(uintptr_t)one);
        for (size_t k = 0; k < json_array_size(one); k++) json_array_append(list, json_array_get(one, k));
    }
    return list;
}

/* Mathematical equality as JSON Schema wants it: 1 equals 1.0, also inside of lists and objects. */
bool schema_equal(const json_t *a, const json_t *b) {
    if (json_is_number(a) && json_is_number(b)) {
        if (json_is_integer(a) && json_is_integer(b)) return json_integer_value(a) == json_integer_value(b);
        return json_number_value(a) == json_number_value(b);
    }
    if (json_typeof(a) != json_typeof(b)) return false;
    if (json_is_array(a)) {
        bool same = json_array_size(a) == json_array_size(b);
        for (size_t i = 0; same && i < json_array_size(a); i++)
            same = schema_equal(json_array_get(a, i), json_array_get(b, i));
        return same;
    }
    if (!json_is_object(a)) return json_equal(a, b);
    bool same = json_object_size(a) == json_object_size(b);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)a, key, value) {
        const json_t *other = json_object_get(b, key);
        same = same && other && schema_equal(value, other);
    }
    return same;
}

/* ------------------------------------------------------------------ merging */

struct merge {
    const json_t *root;
    const char *where;
    int depth;
    struct shu_error *err;
};

static int merge_two(const struct merge *m, const json_t *a, const json_t *b, json_t **out) {
    return schema_merge(m->root, a, b, m->where, m->depth + 1, out, m->err);
}

/* `object[key]` = what both a and b demand. */
static int set_merged(const struct merge *m, json_t *object, const char *key, const json_t *a, const json_t *b) {
    json_t *merged = NULL;
    int status = merge_two(m, a, b, &merged);
    if (!status && json_object_set_new(object, key, merged)) status = no_memory(m->err);
    return status;
}

/* Properties of one side that the other does not list fall under the other's additionalProperties. */
static int merge_properties(const struct merge *m, const json_t *a, const json_t *b, json_t *out) {
    const json_t *sides[2] = {a, b};
    json_t *result = json_object();
    int status = result ? 0 : no_memory(m->err);
    for (int i = 0; !status && i < 2; i++) {
        json_t *own = json_object_get(sides[i], "properties");
        const json_t *other = json_object_get(sides[1 - i], "properties");
        const json_t *further = json_object_get(sides[1 - i], "additionalProperties");
        const char *key;
        json_t *value;
        json_object_foreach(own, key, value) {
            const json_t *match = json_object_get(other, key);
            if (i == 1 && match) continue; /* done from the other side */
            if (!match) match = further;
            if (match)
                status = set_merged(m, result, key, value, match);
            else if (json_object_set(result, key, value))
                status = no_memory(m->err);
            if (status) break;
        }
    }
    if (!status && json_object_size(result)) json_object_set(out, "properties", result);
    json_decref(result);
    return status;
}

static int merge_prefix(const struct merge *m, const json_t *a, const json_t *b, json_t *out) {
    const json_t *x = json_object_get(a, "prefixItems"), *y = json_object_get(b, "prefixItems");
    if (!x && !y) return 0;
    if (!x || !y || json_array_size(x) != json_array_size(y)) {
        bool alone = (!x && !json_object_get(a, "items")) || (!y && !json_object_get(b, "items"));
        return alone && (!x || !y) ? 0 : fail_merge(m->where, "prefixItems", m->err); /* plain copy was right */
    }
    json_t *list = json_array();
    int status = list ? 0 : no_memory(m->err);
    for (size_t i = 0; !status && i < json_array_size(x); i++) {
        json_t *merged = NULL;
        status = merge_two(m, json_array_get(x, i), json_array_get(y, i), &merged);
        if (!status) json_array_append_new(list, merged);
    }
    if (!status) json_object_set(out, "prefixItems", list);
    json_decref(list);
    return status;
}

/* anyOf on both sides: one branch of each. */
static int merge_choices(const struct merge *m, const json_t *a, const json_t *b, json_t *out) {
    const json_t *x = json_object_get(a, "anyOf"), *y = json_object_get(b, "anyOf");
    if (!x || !y) return 0;
    if (json_array_size(x) * json_array_size(y) > 64) return fail_merge(m->where, "anyOf", m->err);
    json_t *list = json_array();
    int status = list ? 0 : no_memory(m->err);
    for (size_t i = 0; !status && i < json_array_size(x); i++)
        for (size_t k = 0; !status && k < json_array_size(y); k++) {
            json_t *merged = NULL;
            status = merge_two(m, json_array_get(x, i), json_array_get(y, k), &merged);
            if (!status) json_array_append_new(list, merged);
        }
    if (!status) json_object_set(out, "anyOf", list);
    json_decref(list);
    return status;
}

static bool is_one_of(const char *key, const char *const *names) {
    for (; *names; names++)
        if (strcmp(key, *names) == 0) return true;
    return false;
}

/* A keyword that both sides have, with different values. */
static int merge_keyword(const struct merge *m, const char *key, const json_t *a, const json_t *b, json_t *out) {
    static const char *const largest[] = {"minimum", "exclusiveMinimum", "minLength", "minItems", NULL};
    static const char *const smallest[] = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", NULL};
    static const char *const apart[] = {"properties", "prefixItems", "anyOf", NULL};
    json_t *merged = NULL;
    if (is_one_of(key, apart)) return 0;
    if (is_one_of(key, largest) || is_one_of(key, smallest)) {
        if (!json_is_number(a) || !json_is_number(b)) return fail_merge(m->where, key, m->err);
        bool take_b = is_one_of(key, largest) ? json_number_value(b) > json_number_value(a)
                                              : json_number_value(b) < json_number_value(a);
        merged = json_incref((json_t *)(uintptr_t)(take_b ? b : a));
    } else if (strcmp(key, "items") == 0 || strcmp(key, "additionalProperties") == 0) {
        return set_merged(m, out, key, a, b);
    } else if (strcmp(key, "type") == 0) {
        merged = schema_type_list(schema_types(a) & schema_types(b));
    } else if (strcmp(key, "required") == 0) {
        merged = union_of(a, b);
    } else if (strcmp(key, "enum") == 0) {
        merged = common_values(a, b);
    } else if (strcmp(key, "pattern") == 0) {
        merged = both_patterns(a, b);
    } else {
        return fail_merge(m->where, key, m->err);
    }
    return json_object_set_new(out, key, merged) ? no_memory(m->err) : 0;
}

static int merge_objects(const struct merge *m, const json_t *a, const json_t *b, json_t **out) {
    json_t *result = json_copy((json_t *)(uintptr_t)a), *value;
    const char *key;
    int status = result ? 0 : no_memory(m->err);
    json_object_foreach((json_t *)(uintptr_t)b, key, value) {
        const json_t *own = json_object_get(a, key);
        if (status || (own && (schema_is_annotation(key) || json_equal(own, value)))) continue;
        if (own)
            status = merge_keyword(m, key, own, value, result);
        else if (json_object_set(result, key, value))
            status = no_memory(m->err);
    }
    if (!status) status = merge_properties(m, a, b, result);
    if (!status) status = merge_prefix(m, a, b, result);
    if (!status) status = merge_choices(m, a, b, result);
    if (!status)
        *out = result;
    else
        json_decref(result);
    return status;
}

/* Replaces $ref and allOf at the top by what they demand. */
int schema_flatten(const json_t *root, const json_t *schema, const char *where, int depth, json_t **out,
                   struct shu_error *err) {
    json_t *ref = json_object_get(schema, "$ref"), *all = json_object_get(schema, "allOf");
    if (depth > GRAMMAR_MAX_NESTING)
        return SHU_FAIL(err, SHU_E_UNSUPPORTED,
                        "schema, %s: allOf and $ref are nested more than %d deep or refer to each other", where,
                        GRAMMAR_MAX_NESTING);
    if (!ref && !all) {
        *out = json_incref((json_t *)(uintptr_t)schema);
        return 0;
    }
    json_t *rest = json_copy((json_t *)(uintptr_t)schema), *merged = NULL;
    int status = rest ? 0 : no_memory(err);
    if (!status && (!json_is_array(all) && all))
        status = SHU_FAIL(err, SHU_E_FORMAT, "schema, %s/allOf: expected a list", where);
    if (rest) json_object_del(rest, "$ref");
    if (rest) json_object_del(rest, "allOf");
    if (!status && ref) {
        const json_t *target = json_is_string(ref) ? schema_resolve(root, json_string_value(ref)) : NULL;
        if (!target) status = SHU_FAIL(err, SHU_E_FORMAT, "schema, %s/$ref: the place is not in this schema", where);
        if (!status) status = schema_merge(root, rest, target, where, depth + 1, &merged, err);
        json_decref(rest);
        rest = merged;
    }
    for (size_t i = 0; !status && i < json_array_size(all); i++) {
        merged = NULL;
        status = schema_merge(root, rest, json_array_get(all, i), where, depth + 1, &merged, err);
        json_decref(rest);
        rest = merged;
    }
    if (!status)
        *out = rest;
    else
        json_decref(rest);
    return status;
}

int schema_merge(const json_t *root, const json_t *a, const json_t *b, const char *where, int depth, json_t **out,
                 struct shu_error *err) {
    struct merge m = {root, where, depth, err};
    json_t *x = NULL, *y = NULL;
    int status = 0;
    if (json_is_false(a) || json_is_false(b) || json_is_true(a) || json_is_true(b)) {
        const json_t *taken = json_is_false(a) || json_is_true(b) ? a : b;
        *out = json_incref((json_t *)(uintptr_t)taken);
        return 0;
    }
    if (!json_is_object(a) || !json_is_object(b))
        return SHU_FAIL(err, SHU_E_FORMAT, "schema, %s: expected an object, true or false", where);
    status = schema_flatten(root, a, where, depth + 1, &x, err);
    if (!status) status = schema_flatten(root, b, where, depth + 1, &y, err);
    if (!status && (!json_is_object(x) || !json_is_object(y)))
        status = schema_merge(root, x, y, where, depth + 1, out, err);
    else if (!status)
        status = merge_objects(&m, x, y, out);
    json_decref(x);
    json_decref(y);
    return status;
}
