"""Operations and the kernels that serve them.

Each backend executes the same list of operations; importing this package loads none of them.
"""
