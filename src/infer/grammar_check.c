/* Grammars: which values a schema admits, and which schemas exclude each other (for enum and oneOf). */
#include "infer/grammar_schema.h"

#include <math.h>
#include <string.h>

static unsigned type_of(const json_t *value) {
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return TYPE_OBJECT;
    case JSON_ARRAY:
        return TYPE_ARRAY;
    case JSON_STRING:
        return TYPE_STRING;
    case JSON_INTEGER:
        return TYPE_INTEGER;
    case JSON_REAL:
        return floor(json_real_value(value)) == json_real_value(value) ? TYPE_INTEGER : TYPE_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return TYPE_BOOLEAN;
    default:
        return TYPE_NULL;
    }
}

static bool within(const json_t *schema, const json_t *value) {
    static const struct {
        const char *name;
        int sign;
        bool open;
    } bounds[] = {
        {"minimum", 1, false}, {"exclusiveMinimum", 1, true}, {"maximum", -1, false}, {"exclusiveMaximum", -1, true}};
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++) {
        const json_t *bound = json_object_get(schema, bounds[i].name);
        if (!json_is_number(bound)) continue;
        double distance = (json_number_value(value) - json_number_value(bound)) * bounds[i].sign;
        if (distance < 0 || (bounds[i].open && distance <= 0)) return false;
    }
    return true;
}

static bool length_fits(const json_t *schema, const char *least, const char *most, size_t length) {
    const json_t *low = json_object_get(schema, least), *high = json_object_get(schema, most);
    if (json_is_number(low) && (double)length < json_number_value(low)) return false;
    return !json_is_number(high) || (double)length <= json_number_value(high);
}

static size_t characters(const json_t *string) {
    size_t count = 0;
    for (const char *c = json_string_value(string), *end = c + json_string_length(string); c < end; c++)
        count += ((unsigned char)*c & 0xC0) != 0x80;
    return count;
}

static bool listed(const json_t *list, const json_t *value) {
    for (size_t i = 0; i < json_array_size(list); i++)
        if (schema_equal(json_array_get(list, i), value)) return true;
    return false;
}

/* Keywords that concern values of the given type and are not looked at here. */
static bool has_other_keywords(const json_t *schema, unsigned type) {
    static const struct {
        const char *name;
        unsigned types;
    } others[] = {{"pattern", TYPE_STRING},    {"format", TYPE_STRING},     {"multipleOf", TYPE_INTEGER | TYPE_NUMBER},
                  {"properties", TYPE_OBJECT}, {"required", TYPE_OBJECT},   {"additionalProperties", TYPE_OBJECT},
                  {"items", TYPE_ARRAY},       {"prefixItems", TYPE_ARRAY}, {"anyOf", TYPE_ALL},
                  {"oneOf", TYPE_ALL},         {"allOf", TYPE_ALL},         {"$ref", TYPE_ALL}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if ((others[i].types & type) && json_object_get(schema, others[i].name)) return true;
    return false;
}

bool schema_fits(const json_t *schema, const json_t *value, bool *sure) {
    *sure = true;
    if (!json_is_object(schema)) return !json_is_false(schema);
    const json_t *type = json_object_get(schema, "type"), *list = json_object_get(schema, "enum"),
                 *constant = json_object_get(schema, "const");
    unsigned own = type_of(value);
    if (type && !(schema_types(type) & own)) return false;
    if (list && !listed(list, value)) return false;
    if (constant && !schema_equal(constant, value)) return false;
    if (json_is_number(value) && !within(schema, value)) return false;
    if (json_is_string(value) && !length_fits(schema, "minLength", "maxLength", characters(value))) return false;
    if (json_is_array(value) && !length_fits(schema, "minItems", "maxItems", json_array_size(value))) return false;
    *sure = !has_other_keywords(schema, own);
    return true;
}

/* ----------------------------------------------------------------- exclusion */

static bool all_refused(const json_t *list, const json_t *schema) {
    bool sure;
    for (size_t i = 0; i < json_array_size(list); i++)
        if (schema_fits(schema, json_array_get(list, i), &sure)) return false;
    return true;
}

static bool constants_refused(const json_t *a, const json_t *b) {
    const json_t *list = json_object_get(a, "enum"), *constant = json_object_get(a, "const");
    bool sure;
    return (list && all_refused(list, b)) || (constant && !schema_fits(b, constant, &sure));
}

static bool requires(const json_t *schema, const char *key) {
    const json_t *list = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (name && strcmp(name, key) == 0) return true;
    }
    return false;
}

/* A property that a demands: b forbids it, or demands it with values that a does not admit. */
static bool property_excludes(const json_t *root, const json_t *a, const json_t *b, int depth) {
    const json_t *required = json_object_get(a, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *key = json_string_value(json_array_get(required, i));
        if (!key) continue;
        const json_t *in_a = json_object_get(json_object_get(a, "properties"), key);
        const json_t *in_b = json_object_get(json_object_get(b, "properties"), key);
        if (!in_b && json_is_false(json_object_get(b, "additionalProperties"))) return true;
        if (in_a && in_b && requires(b, key) && schema_disjoint(root, in_a, in_b, depth + 1)) return true;
    }
    return false;
}

bool schema_disjoint(const json_t *root, const json_t *a, const json_t *b, int depth) {
    json_t *x = NULL, *y = NULL;
    bool disjoint = false;
    if (depth > 8) return false;
    if (json_is_false(a) || json_is_false(b)) return true;
    if (!json_is_object(a) || !json_is_object(b)) return false;
    if (schema_flatten(root, a, "#", 0, &x, NULL) == 0 && schema_flatten(root, b, "#", 0, &y, NULL) == 0 &&
        json_is_object(x) && json_is_object(y)) {
        const json_t *tx = json_object_get(x, "type"), *ty = json_object_get(y, "type");
        unsigned types_x = tx ? schema_types(tx) : TYPE_ALL, types_y = ty ? schema_types(ty) : TYPE_ALL;
        disjoint = !(types_x & types_y) || constants_refused(x, y) || constants_refused(y, x);
        if (!disjoint && types_x == TYPE_OBJECT && types_y == TYPE_OBJECT)
            disjoint = property_excludes(root, x, y, depth) || property_excludes(root, y, x, depth);
    }
    json_decref(x);
    json_decref(y);
    return disjoint;
}
