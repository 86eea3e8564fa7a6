//! Pooled, 64-byte aligned memory for activations and gradients.
//!
//! A training step allocates the same sizes in every step. Returning buffers to a pool avoids the system allocator's
//! page faults, and the alignment lets every vector load start on a cache line (worth 10 % of a step). The pool takes
//! blocks from large segments and joins free neighbours again, so that the blocks one layer frees fit any later size:
//! a step then takes hardly more memory than is live at its peak.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The alignment of every buffer: one cache line, one AVX-512 vector.
const ALIGN: usize = 64;

/// Buffers below this many bytes come from the system allocator, which is fast for small ones.
pub(super) const POOLED: usize = 16 * 1024;

/// The least size of a segment. The system maps so large a piece lazily: unused pages cost nothing.
const SEGMENT: usize = 256 << 20;

/// Blocks from this size on are large.
const LARGE: usize = 2 << 20;

/// Plain old data: every bit pattern is a valid value, zero included.
pub(crate) trait Pod: Copy + Send + Sync + 'static {}
impl Pod for f32 {}
impl Pod for f64 {}
impl Pod for u8 {}

/// `len` elements in pooled memory. Dereferences to a slice; returns to the pool when dropped.
pub(crate) struct Buffer<T: Pod> {
    start: NonNull<T>,
    len: usize,
    /// Size of the block in bytes; 0 when nothing was allocated.
    bytes: usize,
    /// Whether the block is the pool's.
    pooled: bool,
}

// SAFETY: a buffer owns its block exclusively, as a Vec does.
unsafe impl<T: Pod> Send for Buffer<T> {}
// SAFETY: shared access returns shared slices only.
unsafe impl<T: Pod> Sync for Buffer<T> {}

impl<T: Pod> Buffer<T> {
    /// `len` elements of arbitrary (but initialised) value: for results that are written in full.
    pub fn arbitrary(len: usize) -> Self {
        let mut buffer = Self::new(len, true);
        spoil(&mut buffer);
        buffer
    }

    /// The same from the system allocator, for what a thread keeps: in the pool it would pin a whole segment.
    pub fn unpooled(len: usize) -> Self {
        Self::new(len, false)
    }

    fn new(len: usize, pooled: bool) -> Self {
        let Some(bytes) = len.checked_mul(size_of::<T>()).and_then(block_size) else { too_large() };
        let start = match bytes {
            0 => NonNull::dangling(),
            _ if bytes < POOLED || !pooled => zeroed(small(bytes)).cast(),
            _ => pool().take(bytes).cast(),
        };
        Self { start, len, bytes, pooled: pooled && bytes >= POOLED }
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Self::arbitrary(len);
        // SAFETY: all-zero bytes are a valid `T` (see `Pod`), and the block holds `len` of them.
        unsafe { buffer.start.as_ptr().write_bytes(0, len) };
        buffer.len = len;
        buffer
    }

    /// A copy of `values`.
    pub fn copy_of(values: &[T]) -> Self {
        let mut buffer = Self::arbitrary(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

/// In tests arbitrary elements are NaN, so that a read before the first write shows.
pub(super) fn spoil<T: Pod>(elements: &mut [T]) {
    if cfg!(test) {
        // SAFETY: the slice is ours alone, and every bit pattern is a valid element (see `Pod`).
        unsafe { elements.as_mut_ptr().write_bytes(0xFF, elements.len()) };
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the block holds `len` initialised elements (zeroed when allocated, only ever written as elements).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        let start = self.start.cast();
        match self.bytes {
            0 => {}
            // SAFETY: the block came from `zeroed` with this very layout, and is not used again.
            bytes if !self.pooled => unsafe { dealloc(start.as_ptr(), small(bytes)) },
            bytes => pool().put(start, bytes),
        }
    }
}

/// Bytes of the block that holds this many bytes.
pub(super) fn block_size(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(ALIGN)
}

/// Which parts of a segment are free. It counts from the segment's start and knows no address, so that the memory model
/// uses it as well.
pub(super) struct FreeList {
    bytes: usize,
    /// Start and size of the free blocks. Blocks are whole multiples of `ALIGN`, and neighbours that are both
    /// free are one block.
    free: BTreeMap<usize, usize>,
}

impl FreeList {
    /// For a segment of at least `bytes` beside segments of `have` bytes: half of `have`, so that segments
    /// are few.
    pub fn new(bytes: usize, have: usize) -> Self {
        Self::of(bytes.max(SEGMENT).max(have / 2 / ALIGN * ALIGN))
    }

    fn of(bytes: usize) -> Self {
        Self { bytes, free: BTreeMap::from([(0, bytes)]) }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_free(&self) -> bool {
        self.free.get(&0) == Some(&self.bytes)
    }

    /// The front of the first free block that is large enough; large ones come from the end of the last such block, so
    /// that small ones do not fragment their space.
    pub fn take(&mut self, bytes: usize) -> Option<usize> {
        let fits = |(start, size): (&usize, &usize)| (*size >= bytes).then_some((*start, *size));
        let large = bytes >= LARGE;
        let (start, size) =
            if large { self.free.iter().rev().find_map(fits) } else { self.free.iter().find_map(fits) }?;
        self.free.remove(&start);
        let rest = size - bytes;
        let (taken, left) = if large { (start + rest, start) } else { (start, start + bytes) };
        if rest > 0 {
            self.free.insert(left, rest);
        }
        Some(taken)
    }

    /// Frees a block, and joins it with free neighbours.
    pub fn put(&mut self, mut start: usize, mut bytes: usize) {
        if let Some(size) = self.free.remove(&(start + bytes)) {
            bytes += size;
        }
        let before = self.free.range(..start).next_back().map(|(b, s)| (*b, *s));
        if let Some((before, size)) = before.filter(|&(b, s)| b + s == start) {
            (start, bytes) = (before, bytes + size);
        }
        self.free.insert(start, bytes);
    }
}

/// Memory that is divided into blocks.
struct Segment {
    /// The system's allocation, for deallocation.
    given: NonNull<u8>,
    layout: Layout,
    /// The aligned start of the blocks.
    start: NonNull<u8>,
    list: FreeList,
}

// SAFETY: a segment is exclusively owned memory; nothing in it is tied to a thread.
unsafe impl Send for Segment {}

/// Segments, the oldest first.
struct Pool(Vec<Segment>);

static POOL: Mutex<Pool> = Mutex::new(Pool(vec![]));

fn pool() -> MutexGuard<'static, Pool> {
    // No panic can come while a free list is changed, except an allocation failure.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// `bytes` from the first segment with a free block of that size, else from a new segment.
    fn take(&mut self, bytes: usize) -> NonNull<u8> {
        for segment in &mut self.0 {
            if let Some(start) = segment.take(bytes) {
                return start;
            }
        }
        let have: usize = self.0.iter().map(|s| s.list.bytes).sum();
        let mut segment = Segment::new(FreeList::new(bytes, have), bytes);
        let Some(start) = segment.take(bytes) else { too_large() };
        self.0.push(segment);
        start
    }

    /// Frees a block.
    fn put(&mut self, start: NonNull<u8>, bytes: usize) {
        let found = self.0.iter_mut().find_map(|s| Some((s.offset(start)?, s)));
        debug_assert!(found.is_some(), "a block of no segment");
        if let Some((offset, segment)) = found {
            segment.list.put(offset, bytes);
        }
    }

    /// Returns segments in which nothing is in use.
    fn release(&mut self) {
        self.0.retain(|s| !s.list.is_free());
    }
}

impl Segment {
    /// A segment for this free list. Where the system refuses so much memory, half of it and so on, down to `least`.
    fn new(mut list: FreeList, least: usize) -> Self {
        let (given, layout) = loop {
            // The system's own alignment, for asking for more makes it touch every page.
            let layout = list.bytes.checked_add(ALIGN).and_then(|n| Layout::from_size_align(n, 8).ok());
            let layout = layout.unwrap_or_else(|| too_large());
            // SAFETY: the size is not zero.
            if let Some(given) = NonNull::new(unsafe { alloc_zeroed(layout) }) {
                break (given, layout);
            }
            if list.bytes <= least {
                handle_alloc_error(layout);
            }
            list = FreeList::of((list.bytes / 2 / ALIGN * ALIGN).max(least));
        };
        // SAFETY: less than the ALIGN bytes that were allocated on top.
        let start = unsafe { given.add(given.as_ptr().align_offset(ALIGN)) };
        Self { given, layout, start, list }
    }

    fn take(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        // SAFETY: the block lies within the segment.
        self.list.take(bytes).map(|offset| unsafe { self.start.add(offset) })
    }

    /// The offset from the segment's start, if this is inside.
    fn offset(&self, block: NonNull<u8>) -> Option<usize> {
        let offset = (block.as_ptr() as usize).checked_sub(self.start.as_ptr() as usize)?;
        (offset < self.list.bytes).then_some(offset)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: it came from the system with this layout, and `release` makes sure that none of its blocks is in use.
        unsafe { dealloc(self.given.as_ptr(), self.layout) };
    }
}

/// Zeroed memory: every later read is one of initialised bytes. The layout's size is not zero.
fn zeroed(layout: Layout) -> NonNull<u8> {
    assert_ne!(layout.size(), 0);
    // SAFETY: the size is not zero.
    let start = unsafe { alloc_zeroed(layout) };
    NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout))
}

/// The layout of a block that is not pooled.
fn small(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, ALIGN).unwrap_or_else(|_| too_large())
}

/// More bytes than an address can count: an allocation error.
fn too_large() -> ! {
    handle_alloc_error(Layout::new::<[u8; ALIGN]>())
}

/// Returns free memory to the system.
pub(crate) fn release_pool() {
    pool().release();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_zeroed_and_reused() {
        for len in [0, 1, 15, 17, 4096, 5000, 100_000] {
            let mut a = Buffer::<f32>::zeros(len);
            assert_eq!(a.len(), len);
            assert!(a.iter().all(|&v| v == 0.0));
            if len > 0 {
                assert_eq!(a.as_ptr() as usize % ALIGN, 0);
            }
            a.fill(3.0);
            assert!(Buffer::copy_of(&a).iter().all(|&v| v == 3.0));
            drop(a);
            assert!(Buffer::<f32>::zeros(len).iter().all(|&v| v == 0.0));
        }
        drop(Buffer::<f64>::arbitrary(1 << 16));
        release_pool();
        assert_eq!(Buffer::<f64>::zeros(1 << 16).iter().sum::<f64>(), 0.0);
    }

    /// Takes and puts in a shuffled order: blocks never overlap, lie in a segment, and all are joined in the end.
    #[test]
    fn blocks_never_overlap_and_join_again() {
        let mut pool = Pool(vec![]);
        let mut held: Vec<(NonNull<u8>, usize)> = vec![];
        let mut random = 1u64;
        for _ in 0..4000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let draw = (random >> 33) as usize;
            if held.len() > 40 || (!held.is_empty() && draw.is_multiple_of(2)) {
                let (start, bytes) = held.swap_remove(draw / 2 % held.len());
                pool.put(start, bytes);
                continue;
            }
            let bytes = (draw % 100_000 + 1) * if draw.is_multiple_of(7) { 640 } else { ALIGN };
            let start = pool.take(bytes);
            assert_eq!(start.as_ptr() as usize % ALIGN, 0);
            let (from, to) = (start.as_ptr() as usize, start.as_ptr() as usize + bytes);
            assert!(pool.0.iter().any(|s| s.offset(start).is_some_and(|offset| offset + bytes <= s.list.bytes)));
            let apart = |&(s, b): &(NonNull<u8>, usize)| to <= s.as_ptr() as usize || s.as_ptr() as usize + b <= from;
            assert!(held.iter().all(apart));
            // The whole block can be written.
            // SAFETY: it is ours until it is put back.
            unsafe { start.as_ptr().write_bytes(1, bytes) };
            held.push((start, bytes));
        }
        assert!(pool.0.len() > 1);
        let in_use: usize = held.iter().map(|(_, bytes)| bytes).sum();
        let total: usize = pool.0.iter().map(|s| s.list.bytes).sum();
        assert_eq!(pool.0.iter().flat_map(|s| s.list.free.values()).sum::<usize>() + in_use, total);
        let (last, _) = held[0];
        held.drain(1..).for_each(|(start, bytes)| pool.put(start, bytes));
        pool.release();
        assert!(pool.0.len() == 1 && pool.0[0].offset(last).is_some());
        held.drain(..).for_each(|(start, bytes)| pool.put(start, bytes));
        assert!(pool.0[0].list.is_free());
        pool.release();
        assert!(pool.0.is_empty());
    }

    /// No system has 2^56 bytes.
    #[test]
    fn a_segment_that_the_system_refuses_is_made_smaller() {
        let segment = Segment::new(FreeList::of(1 << 56), 4096);
        assert!(segment.list.bytes >= 4096 && segment.list.bytes < 1 << 56);
        assert!(segment.list.is_free());
    }
}
