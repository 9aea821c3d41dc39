//! A one-way message queue between a session and the background worker that it starts for one piece of work.

use crate::error::{Error, Result};
use crate::pg::{compat, worker};
use pgrx::pg_sys;
use std::ffi::c_void;

/// Room for messages on their way; longer ones pass through in parts.
const QUEUE_BYTES: usize = 65_536;
const HEADER_BYTES: usize = 16;

/// The receiving end, in the session that waits.
pub struct Receiver {
    handle: *mut pg_sys::shm_mq_handle,
    segment: *mut pg_sys::dsm_segment,
}

impl Receiver {
    /// Starts a worker in this database that gets `request`, and whose messages can then be received.
    pub fn start(function: &str, name: &str, request: &[u8]) -> Result<Self> {
        let queue_at = (HEADER_BYTES + request.len()).next_multiple_of(8);
        // SAFETY: the segment belongs to the transaction's resource owner, which detaches it however the transaction ends; the
        // request lies between the header and the queue.
        unsafe {
            let segment = pg_sys::dsm_create(queue_at + QUEUE_BYTES, 0);
            let address = pg_sys::dsm_segment_address(segment).cast::<u8>();
            address.cast::<u64>().write(request.len() as u64);
            address
                .add(HEADER_BYTES)
                .copy_from_nonoverlapping(request.as_ptr(), request.len());
            let queue = pg_sys::shm_mq_create(address.add(queue_at).cast(), QUEUE_BYTES);
            pg_sys::shm_mq_set_receiver(queue, pg_sys::MyProc);
            let handle = pg_sys::shm_mq_attach(queue, segment, std::ptr::null_mut());
            let Some(background) = worker::start_task(
                function,
                name,
                pg_sys::dsm_segment_handle(segment),
                pg_sys::MyDatabaseId,
            ) else {
                pg_sys::dsm_detach(segment);
                return Err(Error::NoWorkerSlot);
            };
            pg_sys::shm_mq_set_handle(handle, background);
            Ok(Self { handle, segment })
        }
    }

    /// The next message; `None` when the worker has ended. Cancellable.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut length = 0;
        let mut data: *mut c_void = std::ptr::null_mut();
        // SAFETY: the handle is attached; the message is copied before the next call.
        unsafe {
            match pg_sys::shm_mq_receive(self.handle, &mut length, &mut data, false) {
                pg_sys::shm_mq_result::SHM_MQ_SUCCESS => {
                    Some(std::slice::from_raw_parts(data.cast::<u8>(), length).to_vec())
                }
                _ => None,
            }
        }
    }

    pub fn close(self) {
        // SAFETY: detaches once; the value is consumed.
        unsafe { pg_sys::dsm_detach(self.segment) };
    }
}

/// The sending end, in the worker.
pub struct Sender {
    handle: *mut pg_sys::shm_mq_handle,
}

impl Sender {
    /// Attaches to the segment that the session made. `None`: the session has gone.
    pub fn attach(segment: u32) -> Option<(Self, Vec<u8>)> {
        // SAFETY: the segment's layout is the one `Receiver::start` makes; the mapping is pinned for the process's life.
        unsafe {
            pg_sys::CurrentResourceOwner =
                pg_sys::ResourceOwnerCreate(std::ptr::null_mut(), c"audit_db task".as_ptr());
            let segment = pg_sys::dsm_attach(segment);
            if segment.is_null() {
                return None;
            }
            pg_sys::dsm_pin_mapping(segment);
            let address = pg_sys::dsm_segment_address(segment).cast::<u8>();
            let length = address.cast::<u64>().read() as usize;
            let request = std::slice::from_raw_parts(address.add(HEADER_BYTES), length).to_vec();
            let queue = address
                .add((HEADER_BYTES + length).next_multiple_of(8))
                .cast::<pg_sys::shm_mq>();
            pg_sys::shm_mq_set_sender(queue, pg_sys::MyProc);
            let context = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
            let handle = pg_sys::shm_mq_attach(queue, segment, std::ptr::null_mut());
            pg_sys::MemoryContextSwitchTo(context);
            Some((Self { handle }, request))
        }
    }

    /// Sends a message; `false` when nobody waits for it any more.
    pub fn send(&mut self, message: &[u8]) -> bool {
        // SAFETY: the handle is attached and the message lives across the call.
        unsafe {
            compat::send_to_queue(self.handle, message) == pg_sys::shm_mq_result::SHM_MQ_SUCCESS
        }
    }
}
