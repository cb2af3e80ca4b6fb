//! The relay on `epoll` alone, edge-triggered, one thread. A peer that does not read is of no interest here: pgbench does.

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

/// The listener's number among the events.
const DOOR: u64 = u64::MAX;

/// Relays until something fails that concerns all.
pub fn relay(listen: u16, server: u16) -> io::Result<()> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    let listener = TcpListener::bind(("127.0.0.1", listen))?;
    epoll::add(&poll, &listener, EventData::new_u64(DOOR), EventFlags::IN)?;
    let mut pairs: Vec<Option<[TcpStream; 2]>> = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let mut events: Vec<Event> = Vec::with_capacity(1024);
    loop {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            // A client has an even number, its server the next one.
            let number = event.data.u64();
            if number == DOOR {
                let pair = [listener.accept()?.0, TcpStream::connect(("127.0.0.1", server))?];
                for (socket, number) in pair.iter().zip(pairs.len() as u64 * 2..) {
                    socket.set_nodelay(true)?;
                    socket.set_nonblocking(true)?;
                    epoll::add(&poll, socket, EventData::new_u64(number), EventFlags::IN | EventFlags::ET)?;
                }
                pairs.push(Some(pair));
                continue;
            }
            let (at, side) = ((number / 2) as usize, (number % 2) as usize);
            let Some(pair) = &mut pairs[at] else { continue };
            let gone = match pair[side].read(&mut buffer) {
                Ok(0) => true,
                Ok(count) => pair[1 - side].write_all(&buffer[..count]).is_err(),
                Err(error) => error.kind() != ErrorKind::WouldBlock,
            };
            if gone {
                pairs[at] = None;
            }
        }
    }
}
