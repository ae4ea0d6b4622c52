//! The bytes of a backup: frames, each with a checksum that hangs on all frames before it, so that none can be
//! changed, left out or moved. `docs/backup-format.md` tells the same in words. Read [`Frame`] first.

use std::io::{self, Read, Write};

use stead_model::{ContainerId, PAGE_SIZE, PageNo};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{RestoreError, StateId};
use crate::format::{TABLE_QUOTA_BYTES, get_u32, get_u64, put};
use crate::planted::{self, Bug};
use crate::settings::Settings;

const MAGIC: &[u8; 8] = b"STEADBAK";

/// The version that is written, and the newest that is read. The first says nothing of settings.
const VERSION: u32 = 2;
const VERSION_SETTINGS: u32 = 2;

/// Bytes before the first frame.
const PREAMBLE: usize = 16;

/// Bytes of a frame before its payload: kind, three zeros, bytes of payload, checksum.
const FRAME_HEADER: usize = 16;

/// Bytes of a payload before its images.
const RUN: usize = 16;

/// Most images in a frame.
pub(super) const IMAGES_MOST: usize = 256;

/// Most containers with a quota that a frame has room for.
pub(super) const QUOTAS_MOST: usize = (PAYLOAD_MOST - SETTINGS_FIXED) / TABLE_QUOTA_BYTES;

/// Most pages that a frame says are zero.
pub(super) const ZEROS_MOST: u64 = 1 << 16;

const PAYLOAD_MOST: usize = RUN + IMAGES_MOST * PAGE_SIZE;

/// Bytes of a head before its names.
const HEAD_FIXED: usize = 112;
const NAME_MOST: usize = 255;

const HEAD: u8 = 1;
const CONTAINER: u8 = 2;
const IMAGES: u8 = 3;
const ZEROS: u8 = 4;
const GONE: u8 = 5;
const END: u8 = 6;
const SETTINGS: u8 = 7;

/// Bytes of settings before the containers with a quota.
const SETTINGS_FIXED: usize = 16;

/// What the stream is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) state: StateId,
    /// The state on top of which it is to be restored; `None` for a whole state.
    pub(super) base: Option<StateId>,
    pub(super) created: u64,
    pub(super) base_window: u32,
    pub(super) segment_blocks: u32,
}

/// Counts of all that came before, to be held against what was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Totals {
    pub(super) containers: u64,
    pub(super) images: u64,
    pub(super) zeros: u64,
}

/// One piece of a stream.
#[derive(Debug)]
pub(super) enum Frame<'b> {
    /// First, and only there.
    Head(Head),
    /// What has been laid down for the store and its containers: right behind the head, in version 1 not at all. Further
    /// ones behind that name further containers.
    Settings(Settings),
    /// What follows is this container's; numbers go up.
    Container(ContainerId),
    /// Images of neighbouring pages; page numbers go up within a container.
    Images(PageNo, &'b [u8]),
    /// Pages that are zero now, and may not have been so in the base.
    Zeros(PageNo, u64),
    /// The base has this container, and this state does not.
    Gone(ContainerId),
    /// Last, and only there.
    End(Totals),
}

/// Writes frames.
pub(super) struct FrameWriter<'a> {
    out: &'a mut dyn Write,
    chain: u64,
    buffer: Vec<u8>,
    pub(super) bytes: u64,
}

impl<'a> FrameWriter<'a> {
    pub(super) fn begin(out: &'a mut dyn Write) -> io::Result<Self> {
        let mut preamble = [0; PREAMBLE];
        put(&mut preamble, 0, MAGIC);
        put(&mut preamble, 8, &VERSION.to_le_bytes());
        out.write_all(&preamble)?;
        Ok(FrameWriter {
            out,
            chain: first_seed(&preamble),
            buffer: Vec::new(),
            bytes: PREAMBLE as u64,
        })
    }

    pub(super) fn write(&mut self, frame: &Frame<'_>) -> io::Result<()> {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.resize(FRAME_HEADER, 0);
        let run = |buffer: &mut Vec<u8>, first: PageNo, count: u64| {
            buffer.extend_from_slice(&first.0.to_le_bytes());
            buffer.extend_from_slice(&count.to_le_bytes());
        };
        let kind = match frame {
            Frame::Head(head) => {
                encode_head(head, buffer);
                HEAD
            }
            Frame::Settings(settings) => {
                encode_settings(settings, buffer);
                SETTINGS
            }
            Frame::Container(id) => {
                buffer.extend_from_slice(&u64::from(id.0).to_le_bytes());
                CONTAINER
            }
            Frame::Images(first, images) => {
                run(buffer, *first, (images.len() / PAGE_SIZE) as u64);
                buffer.extend_from_slice(images);
                IMAGES
            }
            Frame::Zeros(first, count) => {
                run(buffer, *first, *count);
                ZEROS
            }
            Frame::Gone(id) => {
                buffer.extend_from_slice(&u64::from(id.0).to_le_bytes());
                GONE
            }
            Frame::End(totals) => {
                for n in [totals.containers, totals.images, totals.zeros] {
                    buffer.extend_from_slice(&n.to_le_bytes());
                }
                END
            }
        };
        buffer[0] = kind;
        let payload = (buffer.len() - FRAME_HEADER) as u32;
        put(buffer, 4, &payload.to_le_bytes());
        self.chain = xxh3_64_with_seed(buffer, self.chain);
        put(buffer, 8, &self.chain.to_le_bytes());
        self.out.write_all(buffer)?;
        self.bytes += buffer.len() as u64;
        Ok(())
    }
}

/// Reads frames, and trusts none of them.
pub(super) struct FrameReader<'a> {
    input: &'a mut dyn Read,
    chain: u64,
    buffer: Vec<u8>,
    /// Where in the input the next frame begins.
    offset: u64,
    /// Where the last one began.
    pub(super) last: u64,
    version: u32,
}

impl<'a> FrameReader<'a> {
    /// Begins with the stream at `offset` of the input; `Ok(None)` if the input is at its end.
    pub(super) fn begin(
        input: &'a mut dyn Read,
        offset: u64,
    ) -> Result<Option<Self>, RestoreError> {
        let mut preamble = [0; PREAMBLE];
        let got = read_up_to(input, &mut preamble)?;
        if got == 0 {
            return Ok(None);
        }
        if preamble[..got.min(8)] != MAGIC[..got.min(8)] {
            return Err(RestoreError::NotABackup);
        }
        if got < PREAMBLE {
            return Err(RestoreError::Cut { offset: offset + got as u64 });
        }
        let version = get_u32(&preamble, 8);
        if version > VERSION {
            return Err(RestoreError::Newer { found: version, known: VERSION });
        }
        let chain = first_seed(&preamble);
        let offset = offset + PREAMBLE as u64;
        Ok(Some(FrameReader { input, chain, buffer: Vec::new(), offset, last: offset, version }))
    }

    /// Whether settings come behind the head.
    pub(super) fn has_settings(&self) -> bool {
        self.version >= VERSION_SETTINGS
    }

    /// Bytes of the input that have been read.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn damaged(&self, what: &'static str) -> RestoreError {
        RestoreError::Damaged { offset: self.last, what }
    }

    pub(super) fn next(&mut self) -> Result<Frame<'_>, RestoreError> {
        self.last = self.offset;
        self.buffer.resize(FRAME_HEADER, 0);
        self.fill(0)?;
        let payload = get_u32(&self.buffer, 4) as usize;
        if payload > PAYLOAD_MOST {
            return Err(self.damaged("a piece of it is longer than any can be"));
        }
        self.buffer.resize(FRAME_HEADER + payload, 0);
        self.fill(FRAME_HEADER)?;
        let checksum = get_u64(&self.buffer, 8);
        put(&mut self.buffer, 8, &0u64.to_le_bytes());
        self.chain = xxh3_64_with_seed(&self.buffer, self.chain);
        if self.chain != checksum && !planted::is(Bug::StreamUnchecked) {
            return Err(self.damaged("a piece does not have the checksum it was written with"));
        }
        decode(&self.buffer)
            .ok_or(RestoreError::Damaged { offset: self.last, what: "a piece says what cannot be" })
    }

    fn fill(&mut self, from: usize) -> Result<(), RestoreError> {
        let got = read_up_to(self.input, &mut self.buffer[from..])?;
        self.offset += got as u64;
        if got < self.buffer.len() - from {
            return Err(RestoreError::Cut { offset: self.offset });
        }
        Ok(())
    }
}

fn first_seed(preamble: &[u8]) -> u64 {
    xxh3_64_with_seed(preamble, u64::from_le_bytes(*MAGIC))
}

/// Fills `into` as far as the input goes.
fn read_up_to(input: &mut dyn Read, into: &mut [u8]) -> Result<usize, RestoreError> {
    let mut got = 0;
    while got < into.len() {
        match input.read(&mut into[got..]) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(RestoreError::Input(error)),
        }
    }
    Ok(got)
}

/// Where each frame of a stream begins and ends, as far as the lengths in it say something that can be; the stream may
/// be several, one behind the other. For those who forge one.
pub(crate) fn frames(stream: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut frames = Vec::new();
    let mut at = PREAMBLE;
    while stream.len() >= at + FRAME_HEADER {
        let end = at + FRAME_HEADER + get_u32(stream, at + 4) as usize;
        if end > stream.len() {
            break;
        }
        frames.push(at..end);
        at = end;
        if stream[at..].starts_with(MAGIC) {
            at += PREAMBLE;
        }
    }
    frames
}

/// Gives each frame of a forged stream the checksum that it would have been written with, and the last of each stream,
/// if `counts`, the totals.
pub(crate) fn seal(stream: &mut [u8], counts: bool) {
    let mut totals = Totals::default();
    let mut chain = 0;
    for frame in frames(stream) {
        if stream[frame.start - PREAMBLE..].starts_with(MAGIC) {
            chain = first_seed(&stream[frame.start - PREAMBLE..frame.start]);
            totals = Totals::default();
        }
        let frame = &mut stream[frame];
        put(frame, 8, &0u64.to_le_bytes());
        match decode(frame) {
            Some(Frame::Container(_) | Frame::Gone(_)) => totals.containers += 1,
            Some(Frame::Images(_, images)) => totals.images += (images.len() / PAGE_SIZE) as u64,
            Some(Frame::Zeros(_, count)) => totals.zeros += count,
            Some(Frame::End(_)) if counts => {
                for (index, n) in
                    [totals.containers, totals.images, totals.zeros].iter().enumerate()
                {
                    put(frame, FRAME_HEADER + index * 8, &n.to_le_bytes());
                }
            }
            _ => {}
        }
        chain = xxh3_64_with_seed(frame, chain);
        put(frame, 8, &chain.to_le_bytes());
    }
}

fn encode_head(head: &Head, buffer: &mut Vec<u8>) {
    let at = buffer.len();
    buffer.resize(at + HEAD_FIXED, 0);
    let block = &mut buffer[at..];
    put(block, 0, &head.created.to_le_bytes());
    put(block, 8, &head.base_window.to_le_bytes());
    put(block, 12, &head.segment_blocks.to_le_bytes());
    put(block, 16, &u32::from(head.base.is_some()).to_le_bytes());
    for (at, state) in [(24, Some(&head.state)), (68, head.base.as_ref())] {
        let Some(state) = state else { continue };
        put(block, at, &state.store_id.to_le_bytes());
        put(block, at + 16, &state.snapshot.to_le_bytes());
        put(block, at + 24, &state.sequence.to_le_bytes());
        put(block, at + 32, &state.time.to_le_bytes());
        put(block, at + 40, &(state.name.len() as u32).to_le_bytes());
    }
    for state in [Some(&head.state), head.base.as_ref()].into_iter().flatten() {
        buffer.extend_from_slice(state.name.as_bytes());
    }
}

fn decode_head(payload: &[u8]) -> Option<Head> {
    let (block, mut names) = payload.split_at_checked(HEAD_FIXED)?;
    let mut state = |at: usize| {
        let length = get_u32(block, at + 40) as usize;
        let (name, rest) = names.split_at_checked(length)?;
        names = rest;
        let low = u128::from(get_u64(block, at));
        let high = u128::from(get_u64(block, at + 8));
        Some(StateId {
            store_id: high << 64 | low,
            snapshot: get_u64(block, at + 16),
            sequence: get_u64(block, at + 24),
            time: get_u64(block, at + 32),
            name: str::from_utf8(name).ok().filter(|name| name.len() <= NAME_MOST)?.to_owned(),
        })
    };
    let this = state(24)?;
    let base = match get_u32(block, 16) {
        0 => None,
        1 => Some(state(68)?),
        _ => return None,
    };
    names.is_empty().then_some(Head {
        state: this,
        base,
        created: get_u64(block, 0),
        base_window: get_u32(block, 8),
        segment_blocks: get_u32(block, 12),
    })
}

fn encode_settings(settings: &Settings, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&settings.quota.unwrap_or_default().to_le_bytes());
    buffer.extend_from_slice(&settings.space_percent.unwrap_or_default().to_le_bytes());
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&settings.encode());
}

fn decode_settings(payload: &[u8]) -> Option<Settings> {
    let (fixed, quotas) = payload.split_at_checked(SETTINGS_FIXED)?;
    quotas.len().is_multiple_of(TABLE_QUOTA_BYTES).then_some(())?;
    Settings::decode(get_u64(fixed, 0), get_u32(fixed, 8), quotas)
}

fn decode(frame: &[u8]) -> Option<Frame<'_>> {
    let (header, payload) = frame.split_at(FRAME_HEADER);
    if header[1..4] != [0; 3] {
        return None;
    }
    let number = |index: usize| get_u64(payload, index * 8);
    let container = || {
        let id = u32::try_from(number(0)).ok().map(ContainerId)?;
        (id <= ContainerId::MAX).then_some(id)
    };
    let run = |most: u64| {
        let (first, count) = (number(0), number(1));
        let inside = (1..=most).contains(&count)
            && first.checked_add(count).is_some_and(|end| end <= PageNo::LIMIT);
        (inside || planted::is(Bug::StreamBelieved)).then_some((PageNo(first), count))
    };
    match (header[0], payload.len()) {
        (HEAD, _) => decode_head(payload).map(Frame::Head),
        (SETTINGS, _) => decode_settings(payload).map(Frame::Settings),
        (CONTAINER, 8) => Some(Frame::Container(container()?)),
        (IMAGES, RUN..) => {
            let (first, count) = run(IMAGES_MOST as u64)?;
            let images = &payload[RUN..];
            (images.len() == count as usize * PAGE_SIZE).then_some(Frame::Images(first, images))
        }
        (ZEROS, RUN) => run(ZEROS_MOST).map(|(first, count)| Frame::Zeros(first, count)),
        (GONE, 8) => Some(Frame::Gone(container()?)),
        (END, 24) => {
            Some(Frame::End(Totals { containers: number(0), images: number(1), zeros: number(2) }))
        }
        _ => None,
    }
}
