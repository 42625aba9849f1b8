"""A bucket as a communication hook gets it."""


class Bucket:
    def __init__(self, values, index=0):
        self._values, self._index = values, index

    def buffer(self):
        return self._values

    def index(self):
        return self._index
