"""The store's side of the lanes; `kvclient.lanes` is the other, and has the messages of both."""
