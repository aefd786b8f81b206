// An empty Python module: importing it loads the library, whose static initialisers register the ops. No pybind11, and
// only the limited API, so that one binary serves every CPython from 3.10 on.
#include <Python.h>

extern "C" {

PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", "Compiled ops of customlstm; use them through torch.ops.customlstm.", -1, nullptr,
      nullptr,               nullptr, nullptr,                                                           nullptr};
  return PyModule_Create(&module);
}
}
