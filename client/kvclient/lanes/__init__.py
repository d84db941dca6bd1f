"""Lanes: the ways by which the bytes of chunks travel between a client and a store, all behind `kvclient.remote.RemoteStore`."""
