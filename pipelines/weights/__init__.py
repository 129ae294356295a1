"""The weights of MobileNet that others publish, read from their files; none of a file is ever run or unpickled."""
