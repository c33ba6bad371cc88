"""What the programs that artifacts carry along have in common."""

READ_INPUTS = '''\
def read_inputs(dtypes):
    """The arrays that NAME=FILE.npy on the command line gives; dtypes of all inputs by name."""
    given = {}
    for text in sys.argv[1:]:
        name, _, file = text.partition("=")
        if name not in dtypes:
            sys.exit(f"there is no input {name!r}; the inputs are {', '.join(dtypes)}")
        if not Path(file).is_file():
            sys.exit(f"there is no file {file!r} for the input {name!r}")
        given[name] = np.load(file)
        if given[name].dtype.kind != "V" and given[name].dtype != dtypes[name]:
            sys.exit(f"input {name!r} is {given[name].dtype}, and has to be {dtypes[name]}")
    return given
'''
"""A function of such a program; it needs numpy as `np`, and Path. Kind V is what numpy lacks."""
