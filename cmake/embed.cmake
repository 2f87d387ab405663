# Writes file IN as a C byte array NAME[] with NAME_bytes to OUT.
file(READ ${IN} hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
file(WRITE ${OUT} "#include <stddef.h>
extern const char ${NAME}[];
extern const size_t ${NAME}_bytes;
const char ${NAME}[] = {${bytes}0};
const size_t ${NAME}_bytes = sizeof ${NAME} - 1;
")
