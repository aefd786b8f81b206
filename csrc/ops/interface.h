// The number that the Python side and the compiled library must share. Raise it whenever an op's schema, the
// encoding of a cell or the meaning of a saved tensor changes; setup.py copies it into the build manifest, and a
// library with another number is refused with the advice to rebuild, instead of failing later in an odd place.
#pragma once

#define CUSTOMLSTM_INTERFACE 7
