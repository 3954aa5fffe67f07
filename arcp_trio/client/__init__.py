"""The other end of the wire: a client of any ARCP runtime."""
