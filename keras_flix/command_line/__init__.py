"""The command `keras-flix`: adapter files inspected, compared, merged, exported."""
