//! What stands in a stream that may be plain, gzip or zstd, told apart by trial.

use std::io::{self, BufReader, Chain, Cursor, Read};

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

type Rewound<R> = Chain<Cursor<Vec<u8>>, R>;

/// A decompressed view of a stream.
pub(super) enum Body<R: Read> {
    Plain(Rewound<R>),
    Gzip(Box<flate2::read::GzDecoder<Rewound<R>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Rewound<R>>>>),
}

impl<R: Read> Body<R> {
    /// Looks at the first bytes and picks the reader.
    pub(super) fn open(mut stream: R) -> io::Result<Self> {
        let mut first = Vec::with_capacity(ZSTD_MAGIC.len());
        (&mut stream).take(ZSTD_MAGIC.len() as u64).read_to_end(&mut first)?;
        let gzip = first.starts_with(&GZIP_MAGIC);
        let zstd = first.starts_with(&ZSTD_MAGIC);
        let whole = Cursor::new(first).chain(stream);
        Ok(if gzip {
            Self::Gzip(Box::new(flate2::read::GzDecoder::new(whole)))
        } else if zstd {
            Self::Zstd(Box::new(zstd::Decoder::new(whole)?))
        } else {
            Self::Plain(whole)
        })
    }

    /// The stream below.
    pub(super) fn into_inner(self) -> R {
        match self {
            Self::Plain(chain) => chain.into_inner().1,
            Self::Gzip(decoder) => decoder.into_inner().into_inner().1,
            Self::Zstd(decoder) => decoder.finish().into_inner().into_inner().1,
        }
    }
}

impl<R: Read> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Gzip(reader) => reader.read(buffer),
            Self::Zstd(reader) => reader.read(buffer),
        }
    }
}
