//! Whether a delegate's boot disk is what the template's was: it is read back through the pool and its digest compared.

use crate::cleanup;
use crate::error::Result;
use crate::pool::Pool;
use crate::retry::until_free;
use sha2::{Digest, Sha256};

/// Unit in which images are made, and disks rounded up from them.
const IMAGE_UNIT: usize = 1 << 20;

/// Whether a disk holds the image of this digest, and nothing behind it.
pub(super) async fn is_pristine(pool: &Pool, vdi: &str, digest: &str) -> Result<bool> {
    let Some(reference) = cleanup::find_vdi(pool, vdi).await? else { return Ok(false) };
    // Made anew for each try: the pool may still be closing the disk.
    let reading = || format!("read the delegate's boot disk {vdi}");
    let image = until_free(reading, async || {
        let mut image = ImageDigest::new(digest);
        pool.client.export_vdi_raw(&reference, |bytes| image.take(bytes)).await?;
        Ok(image)
    });
    Ok(image.await?.is_whole())
}

/// Recognises an image of a digest at the beginning of a disk that may be larger: storage rounds sizes up.
struct ImageDigest {
    wanted: String,
    hash: Sha256,
    size: usize,
    found: bool,
}

impl ImageDigest {
    fn new(wanted: &str) -> Self {
        Self { wanted: wanted.to_ascii_lowercase(), hash: Sha256::new(), size: 0, found: false }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.found {
                // Only zeros may follow; anything else may still be part of a longer image.
                self.found = bytes.iter().all(|byte| *byte == 0);
            }
            let left = IMAGE_UNIT - self.size % IMAGE_UNIT;
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            self.hash.update(now);
            self.size += now.len();
            bytes = later;
            if self.size.is_multiple_of(IMAGE_UNIT) && !self.found {
                self.found = self.matches();
            }
        }
    }

    fn matches(&self) -> bool {
        let digest = self.hash.clone().finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>() == self.wanted
    }

    fn is_whole(&self) -> bool {
        self.found || self.matches()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(image: &[u8]) -> String {
        Sha256::digest(image).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn is_image(wanted: &str, disk: &[u8], piece: usize) -> bool {
        let mut image = ImageDigest::new(wanted);
        disk.chunks(piece).for_each(|bytes| image.take(bytes));
        image.is_whole()
    }

    #[test]
    fn an_image_is_recognised_on_a_disk_that_is_larger_and_nothing_may_follow_it() {
        let image: Vec<u8> = (0..2 * IMAGE_UNIT).map(|at| u8::try_from(at % 251).expect("small")).collect();
        let wanted = digest(&image);
        for piece in [4096, 100_000, IMAGE_UNIT, 3 * IMAGE_UNIT] {
            assert!(is_image(&wanted, &image, piece), "{piece}");
            let mut disk = image.clone();
            disk.resize(4 * IMAGE_UNIT, 0);
            assert!(is_image(&wanted, &disk, piece), "rounded up, {piece}");
            for at in [0, 2 * IMAGE_UNIT - 1, 2 * IMAGE_UNIT, 4 * IMAGE_UNIT - 1] {
                let mut changed = disk.clone();
                changed[at] ^= 1;
                assert!(!is_image(&wanted, &changed, piece), "a bit at {at}, {piece}");
            }
        }
        assert!(!is_image(&wanted, &image[..IMAGE_UNIT], 4096), "cut short");
        assert!(!is_image(&wanted, &[], 4096));
        // An image whose end is zeros: its own digest comes after that of its beginning.
        let zeros = vec![0; 3 * IMAGE_UNIT];
        assert!(is_image(&digest(&zeros[..IMAGE_UNIT]), &zeros, 65_536));
        assert!(is_image(&digest(&zeros), &zeros, 65_536));
    }
}
