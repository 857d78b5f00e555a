"""What every backend has to keep, as a suite that the author of one runs against his own:

    pytest --pyargs xpnn.conformance --backend mine

Each op and layer by kernels and by the standard bodies, values and gradients against float64 on NumPy (`test_cases`);
the doors between host and device (`test_doors`); the executor, and the steps that it makes (`test_executor`); what is
said of arrays that do not fit (`test_errors`). It needs pytest; the rest of xpnn does not.
"""
