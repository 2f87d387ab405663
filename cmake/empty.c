/* Gives the object library of emulated kernels one source of its own. */
typedef int empty_translation_unit;
