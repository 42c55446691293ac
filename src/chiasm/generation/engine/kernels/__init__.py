"""The decoder's arithmetic on a CPU, compiled when it is first used.

`tiles` are the inner loops, written as instructions for vectors; `arithmetic` is what a layer does
to a row; `step` runs all layers over the rows of a batch; `crew` shares the work among threads;
`network` holds a decoder's weights in the shape that these want.

Every number that is computed for a row depends on that row and what it attends to, never on which
rows are computed beside it: sums run in a fixed order whatever the batch. So an answer is the
same, bit by bit, alone and in company, read at once or in pieces, from a cache or anew.
"""
