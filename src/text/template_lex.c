/* Chat templates: cutting the source into tokens (jinja2's lexer with trim_blocks and lstrip_blocks). */
#include "text/template.h"

#include <string.h>

struct lexer {
    struct arena *arena;
    const char *src; /* newlines already normalised */
    size_t bytes, at;
    int line;
    size_t line_start;
    size_t column_at; /* columns are counted up to here */
    int column;
    bool line_starting; /* the last tag ended with a newline */
    struct lex_tokens *out;
    struct shu_error *err;
};

#define LEX_FAIL(lx, position, ...) lex_fail((lx), (position), __VA_ARGS__)

/* Line and column (both from 1, columns in code points) of a byte offset. */
static void place(const struct lexer *lx, size_t position, int *line, int *column) {
    *line = 1;
    *column = 1;
    for (size_t i = 0; i < position && i < lx->bytes; i++) {
        if (lx->src[i] == '\n') {
            ++*line;
            *column = 1;
        } else if (((unsigned char)lx->src[i] & 0xC0) != 0x80) {
            ++*column;
        }
    }
}

static int __attribute__((format(printf, 3, 4))) lex_fail(struct lexer *lx, size_t position, const char *format, ...) {
    char detail[256];
    va_list args;
    va_start(args, format);
    vsnprintf(detail, sizeof detail, format, args);
    va_end(args);
    int line, column;
    place(lx, position, &line, &column);
    return SHU_FAIL(lx->err, SHU_E_FORMAT, "chat template, line %d, column %d: %s", line, column, detail);
}

/* \r\n and \r become \n; one newline at the very end is dropped. */
static int normalise(struct lexer *lx, const char *source, size_t bytes) {
    char *copy = arena_alloc(lx->arena, bytes + 1);
    if (!copy) return SHU_FAIL(lx->err, SHU_E_NOMEM, "chat template: no memory for %zu bytes of source", bytes);
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (source[i] == '\r') {
            copy[n++] = '\n';
            if (i + 1 < bytes && source[i + 1] == '\n') i++;
        } else {
            copy[n++] = source[i];
        }
    }
    if (n > 0 && copy[n - 1] == '\n') n--;
    lx->src = copy;
    lx->bytes = n;
    return 0;
}

static struct lex_token *push(struct lexer *lx, enum token_kind kind, size_t position) {
    struct lex_tokens *out = lx->out;
    if (out->count == out->cap) {
        size_t cap = out->cap ? out->cap * 2 : 256;
        struct lex_token *items = arena_alloc(lx->arena, cap * sizeof *items);
        if (!items) {
            SHU_FAIL(lx->err, SHU_E_NOMEM, "chat template: too many tokens (%zu)", out->count);
            return NULL;
        }
        if (out->count) memcpy(items, out->items, out->count * sizeof *items);
        out->items = items;
        out->cap = cap;
    }
    /* Positions only move forward, so the line count is kept up to date as we go. */
    while (lx->line_start < position) {
        const char *newline = memchr(lx->src + lx->line_start, '\n', position - lx->line_start);
        if (!newline) break;
        lx->line++;
        lx->line_start = lx->column_at = (size_t)(newline - lx->src) + 1;
        lx->column = 1;
    }
    struct text between = {lx->src + lx->column_at, position > lx->column_at ? position - lx->column_at : 0};
    lx->column += (int)text_length(&between);
    lx->column_at += between.bytes;
    struct lex_token *token = &out->items[out->count++];
    *token = (struct lex_token){.kind = (uint8_t)kind, .line = lx->line, .column = lx->column};
    return token;
}

static size_t skip_space(const struct lexer *lx, size_t at) {
    struct text all = {lx->src, lx->bytes};
    while (at < lx->bytes) {
        int n;
        if (!scalar_is_space(text_scalar(&all, at, &n))) break;
        at += (size_t)n;
    }
    return at;
}

static bool starts(const struct lexer *lx, size_t at, const char *literal) {
    size_t n = strlen(literal);
    return at <= lx->bytes && lx->bytes - at >= n && memcmp(lx->src + at, literal, n) == 0;
}

/* ------------------------------------------------------------ text outside tags */

/* "{%", an optional sign, spaces, WORD, then the end of the tag: raw and endraw. Returns the
 * offset behind the tag or 0. */
static size_t match_raw_tag(const struct lexer *lx, size_t at, const char *word, char *sign, bool trim_newline) {
    if (!starts(lx, at, "{%")) return 0;
    at += 2;
    *sign = 0;
    if (at < lx->bytes && (lx->src[at] == '-' || lx->src[at] == '+')) *sign = lx->src[at++];
    at = skip_space(lx, at);
    if (!starts(lx, at, word)) return 0;
    at = skip_space(lx, at + strlen(word));
    if (starts(lx, at, "-%}")) return skip_space(lx, at + 3);
    if (trim_newline && starts(lx, at, "+%}")) return at + 3;
    if (!starts(lx, at, "%}")) return 0;
    at += 2;
    if (trim_newline && starts(lx, at, "\n")) at++;
    return at;
}

/* Emits data [start, end), after the whitespace rules of the tag that follows. */
static int push_data(struct lexer *lx, size_t start, size_t end, char sign, bool lstrip) {
    struct text data = {lx->src + start, end - start};
    if (sign == '-') {
        data = string_strip(data, NULL, STRIP_RIGHT);
    } else if (sign != '+' && lstrip) {
        size_t line = data.bytes;
        while (line > 0 && data.data[line - 1] != '\n') line--;
        if (line > 0 || lx->line_starting) {
            struct text tail = {data.data + line, data.bytes - line};
            if (string_strip(tail, NULL, STRIP_LEFT).bytes == 0) data.bytes = line;
        }
    }
    if (data.bytes == 0) return 0;
    struct lex_token *token = push(lx, TOK_DATA, start);
    if (!token) return SHU_E_NOMEM;
    token->text = data;
    return 0;
}

static int lex_comment(struct lexer *lx, size_t begin, size_t body) {
    for (size_t at = body; at + 1 < lx->bytes; at++) {
        if (!starts(lx, at, "#}")) continue;
        char sign = at > body ? lx->src[at - 1] : 0;
        lx->at = at + 2;
        if (sign == '-')
            lx->at = skip_space(lx, lx->at);
        else if (sign != '+' && starts(lx, lx->at, "\n"))
            lx->at++;
        lx->line_starting = lx->src[lx->at - 1] == '\n';
        return 0;
    }
    return LEX_FAIL(lx, begin, "comment is not closed: expected #}");
}

static int lex_raw(struct lexer *lx, size_t begin, size_t body) {
    for (size_t at = body; at < lx->bytes; at++) {
        char sign;
        size_t end = match_raw_tag(lx, at, "endraw", &sign, true);
        if (!end) continue;
        int status = push_data(lx, body, at, sign, true);
        if (status) return status;
        lx->at = end;
        lx->line_starting = lx->src[end - 1] == '\n';
        return 0;
    }
    return LEX_FAIL(lx, begin, "raw block is not closed: expected {%% endraw %%}");
}

/* --------------------------------------------------------------- strings */

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* \xHH \uHHHH \UHHHHHHHH at src[at] (the letter): writes UTF-8, returns the offset behind, or 0. */
static size_t unescape_hex(const struct lexer *lx, size_t at, size_t end, char *out, size_t *n) {
    size_t digits = lx->src[at] == 'x' ? 2 : lx->src[at] == 'u' ? 4 : 8;
    uint32_t scalar = 0;
    if (end - at - 1 < digits) return 0;
    for (size_t i = 1; i <= digits; i++) {
        int d = hex_digit(lx->src[at + i]);
        if (d < 0 || scalar > 0x0FFFFFFF) return 0;
        scalar = scalar * 16 + (uint32_t)d;
    }
    char encoded[4];
    int bytes = utf8_encode(scalar, encoded);
    if (bytes == 0) return 0;
    memcpy(out + *n, encoded, (size_t)bytes);
    *n += (size_t)bytes;
    return at + 1 + digits;
}

/* One escape at src[at] (the character after the backslash), as Python's string literals. */
static size_t unescape(const struct lexer *lx, size_t at, size_t end, char *out, size_t *n) {
    static const char from[] = "abfnrtv\\'\"";
    static const char to[] = "\a\b\f\n\r\t\v\\'\"";
    char c = lx->src[at];
    const char *known = c ? strchr(from, c) : NULL;
    if (known) {
        out[(*n)++] = to[known - from];
        return at + 1;
    }
    if (c == '\n') return at + 1;
    if (c == 'x' || c == 'u' || c == 'U') return unescape_hex(lx, at, end, out, n);
    if (c >= '0' && c <= '7') {
        uint32_t scalar = 0;
        size_t stop = at + 3 < end ? at + 3 : end;
        while (at < stop && lx->src[at] >= '0' && lx->src[at] <= '7')
            scalar = scalar * 8 + (uint32_t)(lx->src[at++] - '0');
        *n += (size_t)utf8_encode(scalar, out + *n);
        return at;
    }
    out[(*n)++] = '\\';
    out[(*n)++] = c;
    return at + 1;
}

static int lex_string(struct lexer *lx) {
    size_t begin = lx->at, end = begin + 1;
    char quote = lx->src[begin];
    while (end < lx->bytes && lx->src[end] != quote) end += lx->src[end] == '\\' ? 2 : 1;
    if (end >= lx->bytes) return LEX_FAIL(lx, begin, "string is not closed: expected %c", quote);
    char *text = arena_alloc(lx->arena, end - begin + 4); /* no escape grows: \0 is two bytes, U+0000 is one */
    if (!text) return SHU_FAIL(lx->err, SHU_E_NOMEM, "chat template: no memory for a string of %zu bytes", end - begin);
    size_t n = 0;
    for (size_t at = begin + 1; at < end;) {
        if (lx->src[at] != '\\') {
            text[n++] = lx->src[at++];
            continue;
        }
        size_t next = unescape(lx, at + 1, end, text, &n);
        if (!next) return LEX_FAIL(lx, at, "bad escape in a string: expected \\xHH, \\uHHHH or \\UHHHHHHHH");
        at = next;
    }
    struct lex_token *token = push(lx, TOK_STRING, begin);
    if (!token) return SHU_E_NOMEM;
    token->text = (struct text){text, n};
    lx->at = end + 1;
    return 0;
}

/* --------------------------------------------------------------- numbers */

static bool is_digit(const struct lexer *lx, size_t at) {
    return at < lx->bytes && lx->src[at] >= '0' && lx->src[at] <= '9';
}

/* Digits with single underscores between them. */
static size_t skip_digits(const struct lexer *lx, size_t at) {
    while (is_digit(lx, at) || (at < lx->bytes && lx->src[at] == '_' && is_digit(lx, at + 1))) at++;
    return at;
}

static size_t match_float(const struct lexer *lx, size_t at) {
    size_t end = skip_digits(lx, at);
    bool fraction = end < lx->bytes && lx->src[end] == '.' && is_digit(lx, end + 1);
    if (fraction) end = skip_digits(lx, end + 1);
    if (end < lx->bytes && (lx->src[end] == 'e' || lx->src[end] == 'E')) {
        size_t exponent = end + 1;
        if (exponent < lx->bytes && (lx->src[exponent] == '+' || lx->src[exponent] == '-')) exponent++;
        if (is_digit(lx, exponent)) return skip_digits(lx, exponent);
    }
    return fraction ? end : 0;
}

static int lex_number(struct lexer *lx) {
    size_t begin = lx->at, end = 0;
    bool after_dot = begin > 0 && lx->src[begin - 1] == '.';
    if (!after_dot) end = match_float(lx, begin);
    bool real = end != 0;
    int base = 10;
    if (!real && lx->src[begin] == '0' && begin + 2 < lx->bytes) {
        char c = (char)(lx->src[begin + 1] | 0x20);
        base = c == 'b' ? 2 : c == 'o' ? 8 : c == 'x' ? 16 : 10;
    }
    if (!real) {
        end = begin + (base == 10 ? 0 : 2);
        while (end < lx->bytes &&
               ((base == 16 ? hex_digit(lx->src[end]) >= 0 : is_digit(lx, end)) || lx->src[end] == '_'))
            end++;
    }
    struct text digits = {lx->src + begin + (base == 10 ? 0 : 2), end - begin - (base == 10 ? 0 : 2)};
    struct lex_token *token = push(lx, real ? TOK_FLOAT : TOK_INTEGER, begin);
    if (!token) return SHU_E_NOMEM;
    token->text = (struct text){lx->src + begin, end - begin};
    bool leading_zero =
        base == 10 && !real && digits.bytes > 1 && digits.data[0] == '0' && strspn(digits.data, "0_") < digits.bytes;
    bool ok = real ? text_to_real(digits, &token->real) : text_to_integer(digits, base, &token->integer);
    if (!ok || leading_zero)
        return LEX_FAIL(lx, begin, "\"%.*s\" is not a number of at most 64 bits",
                        (int)(end - begin < 40 ? end - begin : 40), lx->src + begin);
    lx->at = end;
    return 0;
}

/* ------------------------------------------------------------ inside of tags */

static const struct {
    char text[3];
    uint8_t op;
} operators[] = {
    {"//", LEX_FLOOR_DIV}, {"**", LEX_POW},   {"==", LEX_EQ},      {"!=", LEX_NE},      {">=", LEX_GE},
    {"<=", LEX_LE},        {"+", LEX_ADD},    {"-", LEX_SUB},      {"/", LEX_DIV},      {"*", LEX_MUL},
    {"%", LEX_MOD},        {"~", LEX_TILDE},  {"[", LEX_LBRACKET}, {"]", LEX_RBRACKET}, {"(", LEX_LPAREN},
    {")", LEX_RPAREN},     {"{", LEX_LBRACE}, {"}", LEX_RBRACE},   {">", LEX_GT},       {"<", LEX_LT},
    {"=", LEX_ASSIGN},     {".", LEX_DOT},    {":", LEX_COLON},    {"|", LEX_PIPE},     {",", LEX_COMMA},
    {";", LEX_SEMICOLON},
};

static int lex_operator(struct lexer *lx, char *stack, int *depth) {
    size_t i = 0, count = sizeof operators / sizeof *operators;
    while (i < count && !starts(lx, lx->at, operators[i].text)) i++;
    if (i == count) {
        struct text all = {lx->src, lx->bytes};
        int n;
        text_scalar(&all, lx->at, &n);
        return LEX_FAIL(lx, lx->at, "unexpected character \"%.*s\"", n, lx->src + lx->at);
    }
    char c = operators[i].text[0];
    if (c == '(' || c == '[' || c == '{') {
        if (*depth == TPL_MAX_PARSE_DEPTH)
            return LEX_FAIL(lx, lx->at, "more than %d nested brackets", TPL_MAX_PARSE_DEPTH);
        stack[(*depth)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
        if (*depth == 0 || stack[*depth - 1] != c)
            return LEX_FAIL(lx, lx->at, "unexpected %c%s%.1s", c, *depth ? ", expected " : "",
                            *depth ? &stack[*depth - 1] : "");
        --*depth;
    }
    struct lex_token *token = push(lx, TOK_OPERATOR, lx->at);
    if (!token) return SHU_E_NOMEM;
    token->op = operators[i].op;
    lx->at += strlen(operators[i].text);
    return 0;
}

/* A name: letters, digits, underscore and every non-ASCII character that is not a space. */
static size_t match_name(const struct lexer *lx) {
    struct text all = {lx->src, lx->bytes};
    size_t at = lx->at;
    while (at < lx->bytes) {
        int n;
        uint32_t scalar = text_scalar(&all, at, &n);
        bool letter = (scalar | 0x20) >= 'a' && (scalar | 0x20) <= 'z' && scalar < 128;
        bool wide = scalar >= 128 && !scalar_is_space(scalar);
        if (!letter && !wide && scalar != '_' && !(scalar >= '0' && scalar <= '9')) break;
        at += (size_t)n;
    }
    return at;
}

/* The end of the tag, if it is here: the offset behind it (and behind the newline it eats), or 0. */
static size_t match_tag_end(const struct lexer *lx, bool block) {
    const char *end = block ? "%}" : "}}";
    size_t at = lx->at;
    if (starts(lx, at, "-") && starts(lx, at + 1, end)) return skip_space(lx, at + 3);
    if (block && starts(lx, at, "+%}")) return at + 3;
    if (!starts(lx, at, end)) return 0;
    at += 2;
    return block && starts(lx, at, "\n") ? at + 1 : at;
}

static int lex_tag(struct lexer *lx, size_t begin, bool block) {
    char stack[TPL_MAX_PARSE_DEPTH];
    int depth = 0, status = 0;
    if (!push(lx, block ? TOK_BLOCK_BEGIN : TOK_VARIABLE_BEGIN, begin)) return SHU_E_NOMEM;
    while (!status) {
        lx->at = skip_space(lx, lx->at);
        size_t end = depth == 0 ? match_tag_end(lx, block) : 0;
        if (end) {
            if (!push(lx, block ? TOK_BLOCK_END : TOK_VARIABLE_END, lx->at)) return SHU_E_NOMEM;
            lx->at = end;
            lx->line_starting = lx->src[end - 1] == '\n';
            return 0;
        }
        if (lx->at >= lx->bytes) return LEX_FAIL(lx, begin, "tag is not closed: expected %s", block ? "%}" : "}}");
        char c = lx->src[lx->at];
        if (c == '"' || c == '\'') {
            status = lex_string(lx);
        } else if (c >= '0' && c <= '9') {
            status = lex_number(lx);
        } else if ((end = match_name(lx)) > lx->at) {
            struct lex_token *token = push(lx, TOK_NAME, lx->at);
            if (!token) return SHU_E_NOMEM;
            token->text = (struct text){lx->src + lx->at, end - lx->at};
            lx->at = end;
        } else {
            status = lex_operator(lx, stack, &depth);
        }
    }
    return status;
}

/* Data up to the next tag, then that tag. */
static int lex_next(struct lexer *lx) {
    size_t start = lx->at, at = start;
    while (at < lx->bytes &&
           !(lx->src[at] == '{' && at + 1 < lx->bytes && strchr("%{#", lx->src[at + 1]) && lx->src[at + 1]))
        at++;
    if (at >= lx->bytes) {
        lx->at = lx->bytes;
        return push_data(lx, start, lx->bytes, '+', false);
    }
    char kind = lx->src[at + 1], sign = 0;
    size_t body = at + 2;
    size_t raw = kind == '%' ? match_raw_tag(lx, at, "raw", &sign, false) : 0;
    if (!raw && body < lx->bytes && (lx->src[body] == '-' || lx->src[body] == '+')) sign = lx->src[body++];
    int status = push_data(lx, start, at, sign, kind != '{');
    if (status) return status;
    lx->at = body;
    if (raw) {
        lx->line_starting = lx->src[raw - 1] == '\n';
        return lex_raw(lx, at, raw);
    }
    if (kind == '#') return lex_comment(lx, at, body);
    return lex_tag(lx, at, kind == '%');
}

int template_lex(struct arena *arena, const char *source, size_t bytes, struct lex_tokens *out, struct shu_error *err) {
    struct lexer lx = {.arena = arena, .line = 1, .column = 1, .line_starting = true, .out = out, .err = err};
    if (bytes > TPL_MAX_SOURCE)
        return SHU_FAIL(err, SHU_E_RANGE, "chat template of %zu bytes, at most %d are accepted", bytes, TPL_MAX_SOURCE);
    int status = normalise(&lx, source, bytes);
    while (!status && lx.at < lx.bytes) status = lex_next(&lx);
    if (status) return status;
    return push(&lx, TOK_END, lx.bytes) ? 0 : SHU_E_NOMEM;
}
