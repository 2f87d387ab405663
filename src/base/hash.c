/* SHA-256 through libsodium. */
#include "base/base.h"

#include <sodium.h>
#include <string.h>

_Static_assert(sizeof(crypto_hash_sha256_state) <= sizeof(struct sha256), "struct sha256 must hold libsodium's state");

static crypto_hash_sha256_state *inside(struct sha256 *hash) {
    return (void *)hash->state;
}

void sha256_init(struct sha256 *hash) {
    crypto_hash_sha256_init(inside(hash));
}

void sha256_update(struct sha256 *hash, const void *bytes, size_t count) {
    if (count) crypto_hash_sha256_update(inside(hash), bytes, count);
}

void sha256_hex(struct sha256 *hash, char out[65]) {
    unsigned char digest[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_final(inside(hash), digest);
    sodium_bin2hex(out, 65, digest, sizeof digest);
}
