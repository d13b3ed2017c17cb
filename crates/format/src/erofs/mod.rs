//! EROFS images: on-disk structures, writer, reader.
