"""What the examples share: command line, recurrent layer, progress bar, checkpoints, data and plots.

None of this belongs to the package `customlstm`; it is ordinary PyTorch around one `customlstm.LSTM`.
"""
