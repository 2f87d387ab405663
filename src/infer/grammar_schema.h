/* Grammars: JSON Schemas as jansson trees, shared by the compiler and its helpers. */
#ifndef GRAMMAR_SCHEMA_H
#define GRAMMAR_SCHEMA_H

#include "infer/grammar.h"

enum {
    TYPE_NULL = 1,
    TYPE_BOOLEAN = 2,
    TYPE_INTEGER = 4,
    TYPE_NUMBER = 8, /* always together with TYPE_INTEGER */
    TYPE_STRING = 16,
    TYPE_ARRAY = 32,
    TYPE_OBJECT = 64,
    TYPE_ALL = 127
};
unsigned schema_types(const json_t *type); /* of the keyword "type"; 0 if it is not valid */
bool schema_is_annotation(const char *key);
bool schema_equal(const json_t *a, const json_t *b);

const json_t *schema_resolve(const json_t *root, const char *ref); /* "#/a/b"; NULL if there is no such place */
/* A schema without $ref and allOf at its top. *out is a new reference. */
int schema_flatten(const json_t *root, const json_t *schema, const char *where, int depth, json_t **out,
                   struct shu_error *err);
/* Two schemas into one that demands both. *out is a new reference. */
int schema_merge(const json_t *root, const json_t *a, const json_t *b, const char *where, int depth, json_t **out,
                 struct shu_error *err);

/* May `value` be valid? Sure means that every keyword beside enum and const was looked at. */
bool schema_fits(const json_t *schema, const json_t *value, bool *sure);
/* True only if no value can be valid for both (both flattened). */
bool schema_disjoint(const json_t *root, const json_t *a, const json_t *b, int depth);

#endif
